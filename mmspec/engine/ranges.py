"""The values that sampling options may have. This module imports no torch, so that a wrong one is refused at once."""

from collections.abc import Mapping

from mmspec.errors import MmspecError

# Options, and the least and the largest value of each.
RANGES = (("temperature", 0.0, 100.0), ("top_k", 0, 2**31), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0))


def check_ranges(options: Mapping[str, object]) -> None:
    """Raise MmspecError for a sampling option that is out of range; options that are not given are not looked at."""
    for name, low, high in RANGES:
        value = options.get(name, low)
        kind = int if name == "top_k" else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise MmspecError(f"{name}={value} is out of range: give a number from {low} to {high}")
    if options.get("top_p") == 0.0:
        raise MmspecError(
            "top_p=0.0 leaves no token to sample: give a number above 0, or temperature=0 for greedy decoding"
        )
    penalty = options.get("repetition_penalty", 1.0)
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0.0 < penalty <= 10.0:
        raise MmspecError(
            f"repetition_penalty={penalty} is out of range: give a number above 0 and up to 10 (1 is none)"
        )
