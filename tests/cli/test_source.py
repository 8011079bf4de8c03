"""Where a command reads its text from."""

import io
import sys
from pathlib import Path

import pytest

from mmspec.cli.source import read_text
from mmspec.errors import MmspecError


def test_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text itself, a file with or without a byte-order mark, or standard input."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("café".encode()), "ascii"))
    assert read_text("", None) == "" and read_text("hello", None) == "hello"
    assert read_text(None, tmp_path / "a.txt") == "naïve\r\n" and read_text(None, Path("-")) == "café"


def test_source_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with a source, and where."""
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "utf16.txt").write_text("hello", "utf-16")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    for text, name, words in (
        ("hello", "a.txt", "a text and the file .*a.txt are both given: give one"),
        (None, None, "no text is given: give it in quotes, or --file FILE, or --file - for standard input"),
        (None, "gone.txt", "cannot read .*gone.txt: No such file or directory; give a text file"),
        (None, ".", "cannot read .*: Is a directory; give a text file"),
        (None, "latin.txt", r"latin.txt is not UTF-8 text \(byte 3\): save it as UTF-8"),
        (None, "utf16.txt", r"utf16.txt is not UTF-8 text \(byte 0\): save it as UTF-8"),
    ):
        with pytest.raises(MmspecError, match=words):
            read_text(text, name and tmp_path / name)
    with pytest.raises(MmspecError, match=r"standard input is not UTF-8 text \(byte 0\)"):
        read_text(None, Path("-"))
