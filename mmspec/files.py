"""Files: text that is read, and what is written whole or not at all."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from mmspec.errors import MmspecError


def read_text(file: Path) -> str:
    """What a text file holds, or standard input if the file is `-`."""
    source = "standard input" if str(file) == "-" else str(file)
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MmspecError(f"{source} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise MmspecError(f"cannot read {source}: {error.strerror or error}; give a text file") from None


def cache_folder() -> Path:
    """Where mmspec keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmspec"


def check_output(path: Path, kinds: dict[str, str]) -> None:
    """The file can be written and its kind is known; raised before any work is done."""
    if path.suffix.lower() not in kinds:
        raise MmspecError(f"cannot write {path}: its ending must be one of {', '.join(kinds)}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise MmspecError(f"cannot write {path}: there is no folder {folder}; make it first")
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise MmspecError(f"cannot write {path}: it is not writable; choose another place")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a temporary file beside `path` and rename it; a failure leaves the old file as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise MmspecError(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    finally:
        partial.unlink(missing_ok=True)
