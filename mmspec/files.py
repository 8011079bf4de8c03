"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from mmspec.errors import MmspecError


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
