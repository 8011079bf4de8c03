"""Commands run in an empty folder."""

import io
import sys
from functools import cache
from pathlib import Path

import pytest

from mmspec import cli


@pytest.fixture
def run(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, model: bool = True) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([*map(str, arguments), *(["--model", str(model_folder), "--device", "cpu"] if model else [])])
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


@cache
def reader(alphabet: frozenset[str], longest: int):
    """Loaded once for all commands."""
    from mmspec.pipelines.phonemize import Phonemizer

    return Phonemizer(alphabet, longest)


@pytest.fixture
def cached_reader():
    """The reader that `speak` uses; its cache can be cleared."""
    return reader


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
