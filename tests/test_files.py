"""Files are checked before work is done, and written whole or not at all."""

import os
from pathlib import Path

import pytest

from mmspec.errors import MmspecError
from mmspec.files import check_output, write_atomically


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.bmp", "its ending must be one of .png, .jpg"),
        ("a", "its ending must be one of .png, .jpg"),
        ("nowhere/a.png", "there is no folder .*nowhere; make it first"),
        ("folder.png", "it is not writable; choose another place"),
    ],
)
def test_check_output(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(MmspecError, match=text):
        check_output(tmp_path / name, {".png": "PNG", ".jpg": "JPEG"})
    check_output(tmp_path / "fine.PNG", {".png": "PNG"})
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_write_atomically(tmp_path: Path) -> None:
    """The new file is there whole; a failure of any kind leaves the old one, and nothing beside it."""
    path = tmp_path / "a.txt"
    write_atomically(path, lambda partial: partial.write_text("old"))
    assert path.read_text() == "old"

    def full_disk(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, os.strerror(28))

    def defect(partial: Path) -> None:
        partial.write_text("half")
        raise RuntimeError("defect")

    with pytest.raises(MmspecError, match="cannot write .*a.txt: No space left on device; choose another place"):
        write_atomically(path, full_disk)
    with pytest.raises(RuntimeError, match="defect"):
        write_atomically(path, defect)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
