"""Where a command reads its text from."""

import sys
from pathlib import Path

from mmspec.errors import MmspecError


def read_text(text: str | None, file: Path | None) -> str:
    """The text, or what the file holds, or what standard input holds if the file is `-`."""
    if text is not None and file is not None:
        raise MmspecError(f"a text and the file {file} are both given: give one")
    if text is not None:
        return text
    if file is None:
        raise MmspecError("no text is given: give it in quotes, or --file FILE, or --file - for standard input")
    source = "standard input" if str(file) == "-" else str(file)
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MmspecError(f"{source} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise MmspecError(f"cannot read {source}: {error.strerror or error}; give a text file") from None
