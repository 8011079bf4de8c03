"""A number of four digits is a year, a label, or a count of things: "in 2104", "room 2104", "2104 people"."""

import re
from collections.abc import Callable, Sequence

from mmspec.pipelines.spoken import Match

MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|"
    r"Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)
# Words after which a number of four digits is a year, and after which it is a label.
BEFORE_YEAR = re.compile(
    rf"(?:\b(?:in|since|by|until|till|from|during|of|the|after|before|between|and|to|year|early|late|mid|circa|spring|"
    rf"summer|autumn|fall|winter|copyright|{MONTH}\.?)|©|{MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?,|\d\d\d\d [-–]) ?$",
    re.I,
)
BEFORE_LABEL = re.compile(
    r"(?:\b(?:room|pin|code|flight|number|no\.?|ext\.?|extension|model|apt\.?|suite|box|bus|route|highway|channel|"
    r"unit|gate|train|line|class|type|part|port|area|agent|call|dial|(?-i:[A-Z]{2,4}))|#) ?$",
    re.I,
)
BEFORE_COUNT = re.compile(
    r"\b(?:ha[sd]|have|having|about|over|under|nearly|almost|around|only|than|exactly|some|another|all|these|those|"
    r"there (?:are|were)|contains?|counted|sold|bought|made|wrote|planted|found|won|with|plus|"
    r"up to|at least|number of|of all) $",
    re.I,
)
MEASURED = set("people meters feet miles yards kilometers pounds kilograms grams calories bytes".split())
COUNT = re.compile(r"(?<![\w.,/:$£€-])([1-9]\d{3})(?![\w%'’]|[.,:/-]\d)")


def count(match: Match, tagger: Callable[[Sequence[str]], list[str]]) -> str:
    """A number of four digits: with a comma if things are counted, as it is if it is a year or a label.

    Hundreds are read alike in either way: "fifteen hundred seats".
    """
    value, before = int(match[0]), match.string[: match.start()]
    if value % 100 == 0 or BEFORE_LABEL.search(before):
        return match[0]
    words = re.findall(r"\A(?: [A-Za-z-]+){1,3}", match.string[match.end() : match.end() + 60])
    following = words[0].split() if words else []
    tags = tagger(["40", *following])[1:]
    plurals = [tag == "NNS" and word.islower() for tag, word in zip(tags, following)]
    counts = bool(plurals) and (plurals[0] or (len(plurals) > 1 and tags[0][:2] in ("JJ", "NN") and plurals[1]))
    if value > 2100:
        return f"{value:,}" if counts or not BEFORE_YEAR.search(before) else match[0]
    if 1800 <= value <= 2035:  # most of these are years
        counts = counts and bool(following[0] in MEASURED or BEFORE_COUNT.search(before))
    return f"{value:,}" if counts and not BEFORE_YEAR.search(before) else match[0]
