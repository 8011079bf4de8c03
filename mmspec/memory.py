"""Memory that is free again."""

import ctypes
import sys


def release_free_memory() -> None:
    """Hand free memory back to the system, which glibc keeps otherwise; does nothing where there is no glibc."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
