"""`mmspec speak`: files, metadata, standard output, exit codes and the text of every error."""

import io
import json
import os
import shutil
import struct
import sys
import wave
from pathlib import Path

import pytest
from PIL import Image

from mmspec import files

TEXT = "Hello there."


def heard(source) -> tuple[list[int], int, dict]:
    """Samples, rate and metadata of a sound file."""
    import soundfile

    with soundfile.SoundFile(source) as file:
        return file.read(dtype="int16").tolist(), file.samplerate, json.loads(file.comment or "{}")


@pytest.mark.parametrize("name", ["hello.wav", "hello.flac"])
def test_sound_and_metadata(speak, tmp_path: Path, name: str) -> None:
    """The file says how it was made; the summary line gives the figures; plain decoding says the same."""
    code, out, err = speak(TEXT, "-o", name, "--seed", 4, "--voice", "ben", "--temperature", 0.8)
    assert code == 0 and out == b""
    assert "first sound" not in err  # nothing is heard before the file is there
    for piece in (name, "s of speech", "tokens/s", "mean acceptance length", "jacobi, exact (lossless)", "seed 4"):
        assert piece in err
    samples, rate, facts = heard(name)
    wanted = {
        "text": TEXT,
        "voice": "ben",
        "seed": 4,
        "drafter": "jacobi",
        "acceptance": "exact",
        "lossless": "yes",
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "dtype": "fp64",
    }
    assert rate == 22050 and len(samples) > 5000 and any(samples)
    assert wanted.items() <= facts.items() and "torch" in facts["software"] and len(facts["ended"]) == 1
    assert speak(
        TEXT, "-o", "plain.wav", "--seed", 4, "--voice", "ben", "--temperature", 0.8, "--drafter", "none", "--quiet"
    ) == (
        0,
        b"",
        "",
    )
    assert heard("plain.wav")[0] == samples
    assert {path.name for path in tmp_path.iterdir()} == {name, "plain.wav"}


def test_text_from_elsewhere(speak, tmp_path: Path) -> None:
    """Words without quotes, a file, and standard input say what the quoted text says; "None" is a word as any other."""
    Path("hello.txt").write_text(TEXT + "\n")
    ways = [[TEXT], TEXT.split(), ["--file", "hello.txt"], ["--file", "-"], ["-"]]
    for i, arguments in enumerate(ways):
        assert speak("-o", f"{i}.wav", "--seed", 4, "--quiet", *arguments, stdin=TEXT.encode()) == (0, b"", "")
    assert [heard(f"{i}.wav")[0] for i in range(5)] == [heard("0.wav")[0]] * 5
    assert speak("None", "-o", "none.wav", "--seed", 4)[0] == 0 and heard("none.wav")[2]["text"] == "None"


@pytest.mark.parametrize("how", [[], ["--stream"]])
def test_standard_output(speak, tmp_path: Path, how: list[str]) -> None:
    """`-o -` writes a WAV to standard output and nothing else; libsndfile and Python's wave read it."""
    code, out, err = speak("Hello there. And you?", "-o", "-", "--seed", 4, *how)
    assert code == 0 and "lossless" in err
    assert out[:4] == b"RIFF" and out[8:16] == b"WAVEfmt " and out.count(b"RIFF") == 1
    assert speak("Hello there. And you?", "-o", "a.wav", "--seed", 4, *how)[0] == 0
    wanted, samples = heard("a.wav")[0], list(struct.unpack(f"<{len(out) // 2 - 22}h", out[44:]))
    assert heard(io.BytesIO(out))[0] == samples and len(samples) == len(wanted)
    assert max(abs(a - b) for a, b in zip(samples, wanted)) <= 1
    with wave.open(io.BytesIO(out)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (22050, 1, 2)
        assert how or file.getnframes() == len(samples)  # the length is known unless it streams
        assert file.readframes(10**6) == out[44:]


def test_reader_of_the_pipe_leaves(speak, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once nobody listens, nothing more is said, and that is no error."""
    into, out = os.pipe()
    os.close(into)
    with os.fdopen(out, "wb") as pipe:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))
        code, _, err = speak("Hello there. " * 5, "-o", "-", "--seed", 4, "--stream")
        said = float(err.split(" s of speech")[0].split()[-1])
    assert code == 0 and said < 2


def test_plot(speak) -> None:
    """A picture beside the sound, of the first sentence; standard output holds the sound alone."""
    code, out, _ = speak("Hello there. And you?", "-o", "-", "--seed", 4, "--stream", "--plot", "a.png")
    assert code == 0 and heard(io.BytesIO(out))[1] == 22050
    with Image.open("a.png") as page:
        assert page.format == "PNG" and page.width >= 1000


@pytest.mark.parametrize(
    ("how", "lossless"), [(["--tolerance", 3], False), (["--acceptance", "typical"], False), (["--tolerance", 1], True)]
)
def test_lossy_speech_is_said(speak, how: list, lossless: bool) -> None:
    """A lossy rule is named as one in the summary and in the file; tolerance 1 is lossless."""
    _, _, err = speak(TEXT, "-o", "a.wav", "--seed", 4, "--drafter", "vadusa", *how)
    assert ("NOT lossless" in err) != lossless and heard("a.wav")[2]["lossless"] == ("yes" if lossless else "no")


def test_warnings_of_speech(speak) -> None:
    """What could not be said, and a sentence that was cut, are told in a line each; the file knows too."""
    code, _, err = speak("Hello 日 there.", "-o", "a.wav", "--temperature", 0)
    assert code == 0 and heard("a.wav")[2]["ended"] == ["length"]
    assert "mmspec: warning: left out what cannot be said: '日'\n" in err
    assert "mmspec: warning: sentence 1 did not end by itself (length): 'Hello there.'; try another seed\n" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no text is given: give it in quotes, or --file FILE, or --file - for standard input"),
        ([""], "there is nothing to say: the text is empty"),
        (["日本"], "there is nothing to say: '日', '本' cannot be said"),
        (["caf\udce9"], "the text is not valid UTF-8"),
        ([TEXT, "--file", "a.txt"], "a text and the file a.txt are both given: give one"),
        (["--file", "a.txt"], "cannot read a.txt: No such file or directory"),
        (["--file", "-"], "standard input is not UTF-8 text"),
        ([TEXT, "--voice", "bne"], "unknown voice 'bne': did you mean 'ben'"),
        ([TEXT, "--drafter", "vadsua"], "unknown drafter 'vadsua': did you mean 'vadusa'"),
        ([TEXT, "--drafter", "hawk-path"], "drafter 'hawk-path' has no weights for this model"),
        ([TEXT, "--acceptance", "exakt"], "unknown acceptance 'exakt': did you mean 'exact'"),
        ([TEXT, "--tolerance", "0"], "tolerance takes one whole number from 1 to 64"),
        (
            [TEXT, "--tolerance", "2", "--acceptance", "exact"],
            "--tolerance 2 and --acceptance exact are both given: give one",
        ),
        ([TEXT, "--temperature", "-1"], "temperature=-1.0 is out of range"),
        ([TEXT, "--top-k", "-1"], "top_k=-1 is out of range"),
        ([TEXT, "--top-p", "0"], "top_p=0.0 leaves no token"),
        ([TEXT, "--repetition-penalty", "0"], "repetition_penalty=0.0 is out of range"),
        ([TEXT, "--seed", "-4"], "seed=-4 is out of range"),
        ([TEXT, "-o", "a.mp3"], "cannot write a.mp3: its ending must be one of .wav, .flac, .ogg"),
        ([TEXT, "-o", "nowhere/a.wav"], "there is no folder"),
        ([TEXT, "--plot", "a.jpg"], "cannot write a.jpg: its ending must be one of .png"),
        ([TEXT, "--plot", "nowhere/a.png"], "there is no folder"),
        ([TEXT, "-o", "-", "--stream", "--voice", "bne"], "unknown voice 'bne'"),
    ],
)
def test_wrong_speech(speak, tmp_path: Path, arguments: list[str], text: str) -> None:
    """One line on standard error, nothing on standard output, exit code 2, no file."""
    code, out, err = speak(*arguments, stdin=b"caf\xe9")
    assert code == 2 and out == b""
    assert err.startswith("mmspec: error: ") and text in err and "Traceback" not in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "wren-34", "--device", "cpu"], "unknown model 'wren-34'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--dtype", "fp61", "--device", "cpu"], "unknown dtype 'fp61'"),
    ],
)
def test_wrong_names_of_speech(run, arguments: list[str], text: str) -> None:
    code, _, err = run("speak", TEXT, *arguments, model=False)
    assert code == 2 and err.startswith("mmspec: error: ") and text in err


def test_model_of_another_task(speak, model_folder: Path) -> None:
    """A text-to-image model is refused by what it is."""
    code, _, err = speak(TEXT, model=model_folder)
    assert code == 2 and "holds a TextToImagePipeline, not a TextToSpeechPipeline: give a text-to-speech model" in err


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (
            lambda model: os.truncate(model / "codec" / "model.safetensors", 1000),
            "codec/model.safetensors is truncated",
        ),
        (
            lambda model: os.truncate(model / "transformer" / "model.safetensors", 1000),
            "transformer/model.safetensors is truncated",
        ),
        (lambda model: (model / "codec" / "model.safetensors").unlink(), "codec/model.safetensors is missing"),
        (lambda model: os.truncate(model / "model_index.json", 20), "model_index.json cannot be read"),
    ],
)
def test_damaged_speech_model(speak, speech_folder: Path, tmp_path: Path, damage, text: str) -> None:
    """The damaged file is named, and there is no sound."""
    model = Path(shutil.copytree(speech_folder, tmp_path / "model"))
    damage(model)
    code, out, err = speak(TEXT, "-o", "a.wav", model=model)
    assert code == 2 and out == b"" and text in err and not Path("a.wav").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("hibari", "reading text needs hibari"), ("soundfile", "sound needs soundfile")]
)
def test_missing_library(speak, cached_reader, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """The extra that brings a missing library is named."""
    cached_reader.cache_clear()
    monkeypatch.setitem(sys.modules, name, None)
    code, _, err = speak(TEXT)
    assert code == 2 and f"{text}: pip install 'mmspec[speech]'" in err


def test_missing_torchaudio(speak, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for what the codec imports."""
    for name in ("mmspec.pipelines.text_to_speech", "mmspec.codecs.mel"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    code, _, err = speak(TEXT)
    assert code == 2 and "needs torchaudio" in err and "pip install 'mmspec[speech]'" in err


def test_old_sound_stays(speak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, before or while writing, the sound that was there stays, and nothing is left beside it."""
    old = tmp_path / "a.wav"
    old.write_bytes(b"old")
    assert speak(TEXT, "-o", "a.wav", "--acceptance", "exakt")[0] == 2

    def fail(path, write) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", fail)
        code, _, err = speak(TEXT, "-o", "a.wav", "--seed", 4)
    assert code == 2 and "cannot write a.wav: No space left on device" in err
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]


def test_speech_interrupt(speak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C exits with 130, without a traceback or a file."""
    from mmspec.pipelines.text_to_speech import TextToSpeechPipeline

    def interrupt(self, *text, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextToSpeechPipeline, "__call__", interrupt)
    code, out, err = speak(TEXT)
    assert code == 130 and out == b"" and "interrupted" in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())
