"""Where a command reads its text from."""

from pathlib import Path

from mmspec import files
from mmspec.errors import MmspecError


def read_text(text: str | None, file: Path | None) -> str:
    """The text, or what the file holds, or what standard input holds if the file is `-`."""
    if text is not None and file is not None:
        raise MmspecError(f"a text and the file {file} are both given: give one")
    if text is not None:
        return text
    if file is None:
        raise MmspecError("no text is given: give it in quotes, or --file FILE, or --file - for standard input")
    return files.read_text(file)
