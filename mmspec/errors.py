"""The one exception that users are meant to see, and the hint for a misspelt name."""

import difflib
from collections.abc import Iterable


class MmspecError(ValueError):
    """What was given, what was expected, what to do; the CLI prints it and exits 2."""


def unknown(kind: str, name: object, names: Iterable[str]) -> MmspecError:
    """`unknown("drafter", "hwak", [...])`: an error that names the near matches and then all of them."""
    names = sorted(names)
    similar = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if similar:  # those that are nearly as close as the closest
        closest = difflib.SequenceMatcher(None, similar[0], str(name)).ratio()
        similar = difflib.get_close_matches(str(name), similar, n=3, cutoff=0.7 * closest)
    hint = f"did you mean {' or '.join(map(repr, similar))}? " if similar else ""
    return MmspecError(f"unknown {kind} {name!r}: {hint}known are {', '.join(names) or 'none'}")


def short(error: BaseException, most: int = 200) -> str:
    """The text of a foreign error in one line of at most `most` characters, its class if it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
