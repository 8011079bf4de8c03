"""Commands on folders of people's speech language models."""

import json
from pathlib import Path

import pytest
import soundfile
import tiny_speakers

from mmspec import cli


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {name: getattr(tiny_speakers, f"save_{name}")(home / name) for name in ("orpheus", "llasa", "cosyvoice")}


def run(*arguments: object) -> int:
    """A command's exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([*map(str, arguments)])
    return int(caught.value.code or 0)


def speak(*arguments: object) -> int:
    return run("speak", "yes.", *arguments, "--seed", 3, "--dtype", "fp64", "--device", "cpu")


def test_sound_and_codes(folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A WAV that says how it came about, the model's own defaults too; codes as JSON, for what has no vocoder."""
    path, codes = tmp_path / "a.wav", tmp_path / "a.json"
    assert speak("--model", folders["orpheus"], "--voice", "leah", "-o", path) == 0
    assert soundfile.info(path).samplerate == 800
    comment = json.loads(soundfile.SoundFile(path).comment)
    facts = {"voice": "leah", "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "lossless": "yes"}
    assert {key: comment[key] for key in facts} == facts
    other = tmp_path / "b.wav"
    assert speak("--model", folders["llasa"], "--reference", path, "--reference-text", "oh", "-o", other) == 0
    assert speak("--model", folders["orpheus"], "--codec", folders["orpheus"] / "codec", "-o", tmp_path / "c.wav") == 0
    assert speak("--model", folders["cosyvoice"], "-o", codes) == 0
    found = json.loads(codes.read_text())
    assert found["seeds"] == [3] and set(found["codes"][0]) <= set(range(tiny_speakers.COSYVOICE_CODES))
    assert f"a.json: {len(found['codes'][0]) / 25:.2f} s of speech" in capfd.readouterr().err


def test_what_is_refused(folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """One line and exit code 2."""
    wav = tmp_path / "a.wav"
    for arguments, wrong in (
        (("--model", folders["cosyvoice"], "-o", wav), "mmspec has no vocoder for the codes of cosyvoice2 models"),
        (
            ("--model", folders["cosyvoice"], "-o", wav, "--codec", tmp_path),
            "CosyVoice 2 takes a codec as an object alone",
        ),
        (("--model", folders["orpheus"], "-o", wav, "--reference-text", "oh"), "--reference-text is what is said in"),
        (("--model", folders["orpheus"], "-o", wav, "--reference", wav), "Orpheus clones no voice from a recording"),
        (("--model", folders["orpheus"], "-o", wav, "--voice", "no one"), "unknown voice 'no one'"),
        (("--model", folders["orpheus"], "-o", tmp_path / "a.json", "--stream"), "codes make no sound to draw or to"),
        (("--model", "wren-86", "-o", wav, "--codec", "a/b"), "wren-86 has a codec of its own: leave --codec out"),
        (("--model", folders["orpheus"] / "codec", "-o", wav), "which does not speak: use one of cosyvoice2, "),
    ):
        assert speak(*arguments) == 2 and wrong in capfd.readouterr().err and not wav.exists()


def test_info_and_verify(folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Name, defaults and voices without weights; tokens as plain decoding's and as those of `generate`."""
    assert run("info", folders["orpheus"], "--json") == 0
    facts = json.loads(capfd.readouterr().out)
    sampling = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    assert facts["defaults"] == {"family": "Orpheus", **sampling, "drafter": "jacobi"} and "tara" in facts["voices"]
    found = tmp_path / "found.json"
    for name in ("orpheus", "cosyvoice"):
        options = ("--prompts", 1, "--tokens", 30, "--dtype", "fp64", "--temperature", 0, "--batch", 1, "--json", found)
        assert run("verify", folders[name], *options, "--device", "cpu") == 0
        rows = json.loads(found.read_text())
        assert rows and all(row["equal"] == row["rows"] == row["generate_equal"] == 1 for row in rows)
