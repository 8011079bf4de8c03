"""The command line: files, metadata, help, exit codes and the text of every error."""

import io
import json
import os
import struct
import subprocess
import sys
import wave
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from mmspec import cli
from mmspec.media import image as picture
from mmspec.pipelines.text_to_image import TextToImagePipeline

PROMPT = "a red heart, 3d style"


@pytest.fixture
def run(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, model: bool = True) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([*map(str, arguments), *(["--model", str(model_folder), "--device", "cpu"] if model else [])])
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


def test_picture_and_metadata(run, tmp_path: Path) -> None:
    """The PNG says how it was made; the summary line gives the figures; plain decoding draws the same picture."""
    code, out, err = run("image", PROMPT, "-o", "heart.png", "--seed", 7, "--guidance", 2.5, "--dtype", "fp64")
    assert code == 0 and out == ""
    for piece in ("heart.png", "tokens/s", "mean acceptance length", "lossless", "seed 7"):
        assert piece in err
    picture = Image.open("heart.png")
    wanted = {
        "prompt": PROMPT,
        "seed": "7",
        "drafter": "jacobi",
        "acceptance": "exact",
        "lossless": "yes",
        "guidance": "2.5",
        "temperature": "1.0",
        "dtype": "fp64",
    }
    assert wanted.items() <= picture.text.items() and "torch" in picture.text["software"]
    assert (
        run("image", PROMPT, "-o", "plain.png", "--seed", 7, "--guidance", 2.5, "--dtype", "fp64", "--drafter", "none")[
            0
        ]
        == 0
    )
    assert Image.open("plain.png").tobytes() == picture.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heart.png", "plain.png"]


def test_lossy_is_said(run) -> None:
    """A lossy rule is named as one in the summary and in the file."""
    _, _, err = run("image", PROMPT, "-o", "lossy.png", "--seed", 1, "--acceptance", "tolerance:3")
    assert "NOT lossless" in err and Image.open("lossy.png").text["lossless"] == "no"


def test_many_pictures(run, tmp_path: Path) -> None:
    """Several files with a seed each, or one sheet; --quiet says nothing."""
    assert run("image", PROMPT, "-o", "many.png", "--n", 3, "--seed", 2, "--quiet") == (0, "", "")
    assert [Image.open(tmp_path / f"many-{i}.png").text["seed"] for i in range(3)] == ["2", "3", "4"]
    assert not (tmp_path / "many.png").exists()
    assert run("image", PROMPT, "-o", "sheet.png", "--n", 4, "--grid", "--quiet")[0] == 0
    assert Image.open("sheet.png").size >= (32, 32)


@pytest.mark.parametrize("name", ["fill.gif", "fill.webp", "fill.png"])
def test_progressive(run, name: str) -> None:
    """The animation has a page for each round, enlarged."""
    assert run("image", PROMPT, "-o", "heart.png", "--seed", 3, "--progressive", name)[0] == 0
    with Image.open(name) as film:
        assert film.n_frames > 8 and film.width > Image.open("heart.png").width


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["image", ""], "the prompt is empty"),
        (["image", "heart " * 80], "tokens and this model reads at most 48"),
        (["image", PROMPT, "--drafter", "jakobi"], "unknown drafter 'jakobi': did you mean 'jacobi'"),
        (["image", PROMPT, "--drafter", "hawk-path"], "drafter 'hawk-path' has no weights for this model"),
        (["image", PROMPT, "--acceptance", "exakt"], "unknown acceptance 'exakt': did you mean 'exact'"),
        (["image", PROMPT, "--acceptance", "exact:2"], "takes no options"),
        (["image", PROMPT, "--guidance", "21"], "out of range: give a number from 0 to 20"),
        (["image", PROMPT, "--temperature", "-1"], "temperature=-1.0 is out of range"),
        (["image", PROMPT, "--top-p", "0"], "top_p=0.0 leaves no token"),
        (["image", PROMPT, "--n", "0"], "out of range"),
        (["image", PROMPT, "--seed", "-4"], "seed=-4 is out of range"),
        (["image", PROMPT, "--dtype", "fp61"], "unknown dtype 'fp61'"),
        (["image", PROMPT, "-o", "heart.bmp"], "heart.bmp"),
        (["image", PROMPT, "-o", "nowhere/heart.png"], "there is no folder"),
        (["image", PROMPT, "-o", "nowhere/heart.png", "--n", "2"], "there is no folder"),
        (["image", PROMPT, "--progressive", "fill.mp4"], "fill.mp4"),
        (["image", PROMPT, "-o", "heart.png", "--progressive", "heart.png"], "give two names"),
    ],
)
def test_wrong_input(run, tmp_path: Path, arguments: list[str], text: str) -> None:
    """One line on standard error, exit code 2, no file."""
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("mmspec: error: ") and text in err and "Traceback" not in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["image", PROMPT, "--model", "emoji-46"], "unknown model 'emoji-46'"),
        (["verify", "emoji-46"], "unknown model 'emoji-46'"),
        (["bench", "image", "--model", "emoji-46", "--device", "cpu"], "unknown model 'emoji-46'"),
        (["bench", "image", "--prompts", "0", "--device", "cpu"], "must be 1 or more"),
        (["bench", "image", "--batch", "0", "--device", "cpu"], "must be 1 or more"),
        (["bench", "image", "--dtype", "fp61", "--device", "cpu"], "unknown dtype 'fp61'"),
        (["bench", "image", "--out", __file__, "--device", "cpu"], "cannot write to"),
        (["train", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["train", str(Path(__file__).parent)], "recipe.yaml: give the path of a recipe.yaml"),
        (["image", PROMPT, "--model", "~nobody-of-this-name/x"], "no folder ~nobody-of-this-name/x"),
        (["image", "caf\udce9", "--device", "cpu"], "the prompt is not valid UTF-8"),
        (["image", PROMPT, "--device", "gpu"], "gpu"),
    ],
)
def test_wrong_names(run, arguments: list[str], text: str) -> None:
    code, _, err = run(*arguments, model=False)
    assert code == 2 and err.startswith("mmspec: error: ") and text in err


@pytest.mark.parametrize(
    "arguments", [["image"], ["paint", PROMPT], ["image", PROMPT, "--seeed", "3"], ["image", PROMPT, "--n", "many"], []]
)
def test_bad_arguments(run, arguments: list[str]) -> None:
    """What the parser refuses exits with 2 as well."""
    code, _, err = run(*arguments, model=False)
    assert code == 2 and "Traceback" not in err


def test_old_file_stays(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, the picture that was there is still there, and nothing is left beside it."""
    old = tmp_path / "heart.png"
    old.write_bytes(b"old")
    assert run("image", PROMPT, "-o", "heart.png", "--acceptance", "exakt")[0] == 2

    def fail(self, partial, **options) -> None:
        Path(partial).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", fail)
        code, _, err = run("image", PROMPT, "-o", "heart.png")
    assert code == 2 and "No space left on device" in err
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]


def test_interrupt(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C exits with 130, without a traceback or a file."""

    def interrupt(self, *prompt, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextToImagePipeline, "__call__", interrupt)
    code, _, err = run("image", PROMPT)
    assert code == 130 and "interrupted" in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_damaged_model(run, model_folder: Path, tmp_path: Path) -> None:
    """A truncated weight file is named."""
    import shutil

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    file = folder / "transformer" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    code, _, err = run("image", PROMPT, "--model", folder, "--device", "cpu", model=False)
    assert code == 2 and "model.safetensors is truncated" in err


TEXT = "Hello there."


@cache
def reader(alphabet: frozenset[str], longest: int):
    """Loaded once for all commands."""
    from mmspec.pipelines.phonemize import Phonemizer

    return Phonemizer(alphabet, longest)


@pytest.fixture
def speak(speech_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture):
    """Run `mmspec speak` in an empty folder: (exit code, standard output as bytes, standard error)."""
    pytest.importorskip("soundfile")
    from mmspec.pipelines import text_to_speech

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_to_speech, "Phonemizer", lambda alphabet, longest: reader(frozenset(alphabet), longest))

    def call(
        *arguments: object, model: Path = speech_folder, stdin: bytes = b"", dtype: str = "fp64"
    ) -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            cli.main(["speak", *map(str, arguments), "--model", str(model), "--device", "cpu", "--dtype", dtype])
        out, err = capfdbinary.readouterr()
        return int(caught.value.code or 0), out, err.decode()

    return call


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
    ways = [[TEXT], TEXT.split(), ["--file", "hello.txt"], ["--file", "-"]]
    for i, arguments in enumerate(ways):
        assert speak("-o", f"{i}.wav", "--seed", 4, "--quiet", *arguments, stdin=TEXT.encode()) == (0, b"", "")
    assert [heard(f"{i}.wav")[0] for i in range(4)] == [heard("0.wav")[0]] * 4
    assert speak("None", "-o", "none.wav", "--seed", 4)[0] == 0 and heard("none.wav")[2]["text"] == "None"


@pytest.mark.parametrize("how", [[], ["--stream"]])
def test_standard_output(speak, tmp_path: Path, how: list[str]) -> None:
    """`-o -` writes a WAV to standard output and nothing else, which libsndfile and Python's wave read; all talk goes
    to standard error.
    """
    code, out, err = speak("Hello there. And you?", "-o", "-", "--seed", 4, *how)
    assert code == 0 and "lossless" in err
    assert out[:4] == b"RIFF" and out[8:16] == b"WAVEfmt " and out.count(b"RIFF") == 1
    assert speak("Hello there. And you?", "-o", "a.wav", "--seed", 4, *how)[0] == 0
    wanted, samples = heard("a.wav")[0], list(struct.unpack(f"<{len(out) // 2 - 22}h", out[44:]))
    assert heard(io.BytesIO(out))[0] == samples and len(samples) == len(wanted)
    assert max(abs(a - b) for a, b in zip(samples, wanted)) <= 1
    with wave.open(io.BytesIO(out)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (22050, 1, 2)
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
        ([], "no text is given: give it in quotes, or a file, or - as the file for standard input"),
        ([""], "there is nothing to say: the text has no letter and no digit"),
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
    import shutil

    model = Path(shutil.copytree(speech_folder, tmp_path / "model"))
    damage(model)
    code, out, err = speak(TEXT, "-o", "a.wav", model=model)
    assert code == 2 and out == b"" and text in err and not Path("a.wav").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("hibari", "reading text needs hibari"), ("soundfile", "sound needs soundfile")]
)
def test_missing_library(speak, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """The extra that brings a missing library is named."""
    reader.cache_clear()
    monkeypatch.setitem(sys.modules, name, None)
    code, _, err = speak(TEXT)
    assert code == 2 and f"{text}: pip install 'mmspec[speech]'" in err


def test_missing_torchaudio(speak, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for what the pipeline itself imports."""
    for name in ("mmspec.pipelines.text_to_speech", "mmspec.codecs.mel"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    code, _, err = speak(TEXT)
    assert code == 2 and "speech needs torchaudio: pip install 'mmspec[speech]'" in err


def test_old_sound_stays(speak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, before or while writing, the sound that was there is still there, and nothing is left beside it."""
    old = tmp_path / "a.wav"
    old.write_bytes(b"old")
    assert speak(TEXT, "-o", "a.wav", "--acceptance", "exakt")[0] == 2

    def fail(path, write) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(picture.os, "replace", fail)
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


@pytest.mark.parametrize("command", ["image", "speak", "ask", "chat", "bench", "train", "verify", "info"])
def test_help_has_an_example(run, command: str) -> None:
    code, out, _ = run(command, "--help", model=False)
    assert code == 0 and f"mmspec {command}" in out.replace(f"usage: mmspec {command}", "")


def test_info(run) -> None:
    """Versions, devices, rules; JSON for machines."""
    code, out, _ = run("info", "--json", model=False)
    found = json.loads(out)
    assert code == 0 and found["acceptance"]["exact"] == "lossless" and found["acceptance"]["typical"] == "lossy"
    assert {"torch", "devices", "models", "drafters", "threads"} <= found.keys()
    code, out, _ = run("info", model=False)
    assert code == 0 and "jacobi" in out


def test_verify(run, model_folder: Path, tmp_path: Path) -> None:
    """Every row equal in float64; the findings are written as JSON."""
    settings = "--prompts 2 --dtype fp64 --temperature 0 1 --guidance 1 3 --batch 1 2 --tokens 12 --drafters jacobi lookup --device cpu --json found.json".split()
    code, out, _ = run("verify", model_folder, *settings, model=False)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert code == 0 and "2/2" in out and len(rows) == 2 * 2 * 2 * 2
    assert all(row["equal"] == row["rows"] == 2 for row in rows)


def test_verify_speech(run, speech_folder: Path, tmp_path: Path) -> None:
    """Speech has no guidance, but repetition penalties; rows of a batch end at different places."""
    settings = "--prompts 3 --dtype fp64 --temperature 1 --repetition-penalty 1 1.5 --batch 1 3 --drafters vadusa --device cpu --json found.json"
    code, _, _ = run("verify", speech_folder, *settings.split(), model=False)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert code == 0 and [row["repetition_penalty"] for row in rows] == [1.0, 1.0, 1.5, 1.5]
    assert all(row["equal"] == row["rows"] == 3 and row["guidance"] == 1.0 for row in rows)
    code, _, err = run("verify", speech_folder, *"--guidance 2 --dtype fp64 --device cpu".split(), model=False)
    assert code == 2 and "takes no guidance: leave it out" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--prompts", "0"], "must be 1 or more"),
        (["--repetition-penalty", "0"], "repetition_penalty=0.0 is out of range"),
        (["--drafters", "jakobi"], "unknown drafter 'jakobi'"),
        (["--dtype", "fp61"], "unknown dtype 'fp61'"),
        (["--dtype"], "--dtype has no values: give at least one"),
        (["--json", "nowhere/found.json"], "there is no folder"),
        (["--guidance", "99", "--prompts", "1"], "out of range: give a number from 0 to 20"),
    ],
)
def test_verify_refuses(run, model_folder: Path, arguments: list[str], text: str) -> None:
    code, _, err = run("verify", model_folder, "--device", "cpu", *arguments, model=False)
    assert code == 2 and text in err


def test_verify_fails_on_a_difference(run, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter whose tokens differ in float64 is found, and the exit code says so (the negative control)."""
    from mmspec import verify

    honest = verify.generate

    def wrong(*arguments, **options):
        done = honest(*arguments, **options)
        if "on_accept" not in options:
            done.tokens[0][3] ^= 1
        return done

    monkeypatch.setattr(verify, "generate", wrong)
    settings = "--prompts 1 --dtype float64 --temperature 1 --guidance 1 --batch 1 --tokens 8 --drafters jacobi --device cpu".split()
    code, out, _ = run("verify", model_folder, *settings, model=False)
    assert code == 1 and "0/1" in out


def test_module_and_version() -> None:
    """`python -m mmspec --version` answers without importing torch."""
    code = "import sys; sys.argv = ['mmspec', '--version']\ntry:\n import mmspec.__main__\nexcept SystemExit as end:\n print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[0].startswith("mmspec ") and done.stdout.splitlines()[1] == "0 False", done.stderr
