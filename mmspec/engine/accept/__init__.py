"""Acceptance rules by name: which path of a draft tree is kept, and the bonus token that follows it."""

from dataclasses import fields

from mmspec.engine.accept.base import AcceptanceRule, Accepted, Committed, add_gumbel
from mmspec.engine.accept.exact import Exact
from mmspec.engine.accept.lexical import Lexical
from mmspec.engine.accept.rejection import Rejection
from mmspec.engine.accept.tolerance import Tolerance
from mmspec.engine.accept.typical import Typical
from mmspec.errors import MmspecError, unknown

__all__ = ["RULES", "Accepted", "AcceptanceRule", "Committed", "acceptance", "add_gumbel"]

RULES: dict[str, type[Exact | Lexical | Rejection | Tolerance | Typical]] = {
    "exact": Exact,
    "rejection": Rejection,
    "tolerance": Tolerance,
    "typical": Typical,
    "lexical": Lexical,
}


def acceptance(rule: object) -> AcceptanceRule:
    """A rule by name (or itself); options follow a colon: `tolerance:3`, `typical:0.3,0.09`.

    Raises MmspecError for a wrong name or option, and for what is neither a name nor a rule.
    """
    if not isinstance(rule, str):
        if isinstance(rule, AcceptanceRule):
            return rule
        raise MmspecError(
            f"acceptance is a {type(rule).__name__}: give one of {', '.join(RULES)}, as in 'exact' or 'tolerance:3'"
        )
    name, _, options = rule.partition(":")
    if name not in RULES:
        raise unknown("acceptance", name, RULES)
    kind = RULES[name]
    try:
        numbers = [float(part) for part in options.split(",")] if options else []
    except ValueError:
        raise MmspecError(
            f"acceptance {rule!r}: what follows the colon must be numbers, as in 'tolerance:3' or 'typical:0.3,0.09'"
        ) from None
    if numbers and not fields(kind):
        raise MmspecError(f"acceptance {name!r} takes no options: give {name!r} alone")
    values = [int(number) if number.is_integer() else number for number in numbers]
    fractions = [not isinstance(value, int) and field.type is int for field, value in zip(fields(kind), values)]
    try:
        if any(fractions) or len(values) not in (0, len(fields(kind))):
            raise ValueError
        return kind(*values)  # type: ignore[arg-type]
    except ValueError:
        raise MmspecError(f"acceptance {rule!r}: {kind.usage}") from None
