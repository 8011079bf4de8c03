"""One number, date, sum, formula or file name in words: what the rules of `normalize` write for a match."""

import re

from mmspec.pipelines.units import CURRENCY, FILE_WORDS, measure, plural

Match = re.Match[str]

SCALES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "tn": "trillion"}
MONTHS = (
    "January February March April May June July August September October November December"
).split()  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
BEFORE_DAY = re.compile(r"\b(?:on|by|until|till|since|before|after|due|dated?|ends?|from) $", re.I)
BOOK = re.compile(r"\b(?:Genesis|Exodus|Psalms?|Isaiah|Matthew|Mark|Luke|John|Acts|Romans|Corinthians|Hebrews) $")
SCORE = re.compile(r"\b(?:w[io]n|wins|los[et]|beat|scored?|led|leads?|drew|result|vs?)\b", re.I)


def cardinal(digits: str) -> str:
    """A whole number in words, without "and" as Americans say it; a very long one digit by digit."""
    from hibari.g2p.numbers import cardinal as words

    plain = digits.replace(",", "")
    if len(plain) > 18:
        return spell(plain)
    return re.sub(r"-|, | and ", " ", words(int(plain)))


def spell(text: str) -> str:
    """The digits of a text, one by one."""
    return " ".join(cardinal(character) for character in text if character.isdecimal())


def ordinal(value: int) -> str:
    from hibari.g2p.numbers import ordinal as words

    return re.sub(r"-|, | and ", " ", words(value))


def grouped(number: str) -> str:
    """A number of four digits with its comma, so that it is not read as a year."""
    return f"{int(number):,}" if re.fullmatch(r"\d{4}", number) else number


def part(digits: str) -> str:
    """A part of a version or address: a number, or digits if it begins with zero or has three and more."""
    return spell(digits) if digits[0] == "0" or len(digits) > 2 else cardinal(digits)


def letters(text: str) -> str:
    """Letters to be read one by one, with dots, as hibari takes them for initials."""
    return "".join(f"{letter.upper()}." for letter in text)


def scale(text: str | None) -> str:
    word = (text or "").strip()
    return f" {SCALES.get(word.lower(), word)}" if word else ""


def date(year: str, month: int, day: int) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{MONTHS[month - 1]} {ordinal(day)}" + (f", {year}" if year else "")


def numeric_date(match: Match) -> str:
    """24.12.2024, 12-24-2024: the day is first in the former, second in the latter, unless it cannot be."""
    first, sign, second, year = int(match[1]), match[2], int(match[3]), match[4]
    orders = [(second, first), (first, second)] if sign == "." else [(first, second), (second, first)]
    return next((words for month, day in orders if (words := date(year, month, day))), match[0])


def month_of_year(match: Match) -> str:
    """2024-05 is May 2024, but 2004-05 two years."""
    year, month = match.groups()
    return match[0] if int(year) % 100 + 1 == int(month) else f"{MONTHS[int(month) - 1]} {year}"


def month_name(short: str) -> str:
    return next(name for name in MONTHS if name.startswith(short[:3]))


def day_name(short: str) -> str:
    return next(name for name in DAYS if name.startswith(short[:3]))


def fraction_words(top: str, bottom: str) -> str | None:
    """ "three sixteenths"; None if the denominator has no name."""
    above, below = int(top), int(bottom)
    if below < 2:
        return None
    name = {2: "half", 4: "quarter"}.get(below, ordinal(below))
    return f"{cardinal(top)} " + (name if above == 1 else "halves" if below == 2 else f"{name}s")


def mixed(match: Match) -> str:
    """2 1/2: "2 and a half"."""
    whole, top, bottom, unit = match.groups()
    words = fraction_words(top, bottom)
    if words is None or int(top) >= int(bottom):
        return match[0]
    words = "a half" if words == "one half" else words
    return f"{grouped(whole)} and {words}" + (f" {measure(unit, False)}" if unit else "")


def slash(match: Match) -> str:
    """a/b: a date after a preposition, a pair ("24/7"), a quotient before or after a sign, or a fraction."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    top, bottom, unit = match.groups()
    above, below = int(top), int(bottom)
    day = date("", above, below) if len(top) < 3 and len(bottom) < 3 else None
    calculation = re.match(r" ?[=≈≠+×÷*<>≤≥]", after) or re.search(r"[=≈≠+×÷*<>≤≥] ?$", before)
    suffix = f" {measure(unit, False)}" if unit else ""
    if len(bottom) == 4 and 1 <= above <= 12 and 1900 <= below <= 2100:
        return f"{MONTHS[above - 1]} {bottom}"
    if (top, bottom) in (("24", "7"), ("9", "11")) and not calculation:
        return f"{cardinal(top)} {cardinal(bottom)}"
    part_of = unit or re.match(r"(?:[ -]of\b| ?(?:inch|cup|mile|hour|pound|ounce|teaspoon|tablespoon)|\"|”)", after)
    if day and not part_of and BEFORE_DAY.search(before):
        return day
    if len(top) == 4 and len(bottom) in (2, 4):  # 2023/24
        return f"{top} {bottom}"
    pair = above == below or (above + below == 100 and below > 9)
    if calculation and above >= below or above > below and not pair:
        return f"{cardinal(top)} over {cardinal(bottom)}{suffix}"
    if pair:
        return f"{cardinal(top)} {'out of ' if above == below <= 10 else ''}{cardinal(bottom)}"
    if day and below > 10 and not part_of and below not in (12, 16):
        return day
    words = fraction_words(top, bottom)
    return match[0] if words is None else words + (f" {measure(unit, above == 1)}" if unit else "")


def ratio(match: Match) -> str:
    """2:1 and 16:9, but not the time 9:16 unless a word tells that it is a ratio."""
    parts = match[0].split(":")
    before, after = match.string[: match.start()], match.string[match.end() :]
    clock = len(parts[1]) == 2 and int(parts[0]) <= 24 and int(parts[1]) <= 59
    told = re.match(r" (?:ratio|odds|scale|aspect|screen|display|split|mix|resolution)", after) or re.search(
        r"\b(?:ratio|odds|scale|mix|proportions?)(?: of| is)? $", before
    )
    if BOOK.search(before):
        return match[0].replace(":", " ")
    if (clock or len(parts) > 2 and len(parts[1]) == 2) and not told:
        return match[0]
    joint = " " if not told and len(parts) == 2 and parts[0] == parts[1] and len(parts[0]) > 1 else " to "
    return joint.join(map(cardinal, parts))


def phone(match: Match) -> str:
    """Digits of each group, with a short pause between groups."""
    if re.fullmatch(r"\d{3}-\d{4}", match[0]) and match[0].endswith("00") and match[0][1:3] == "00":
        return match[0].replace("-", " to ")
    plus = "plus " if match[0].startswith("+") else ""
    return plus + ", ".join(spell(group) for group in re.findall(r"\d+", match[0]))


def money_range(match: Match) -> str:
    sign, low, low_scale, high, high_scale = match.groups()
    if "." in low + high and not low_scale + high_scale:
        return f"{sign}{low} to {sign}{high}"
    return f"{grouped(low)}{scale(low_scale)} to {grouped(high)}{scale(high_scale)} {plural(CURRENCY[sign])}"


def continental(number: str) -> str:
    """1.234,56 as 1,234.56."""
    whole, comma, cents = number.partition(",")
    if comma and len(cents) != 3:
        return f"{int(re.sub('[^0-9]', '', whole)):,}.{cents.ljust(2, '0')}"
    return f"{int(re.sub('[^0-9]', '', number)):,}" if re.fullmatch(r"\d{1,3}(?:[., ]\d{3})+", number) else number


def minus(match: Match) -> str:
    """A spaced hyphen: minus if it is followed by an equals sign or goes down, a range otherwise."""
    low, high = (float(match[i].replace(",", "")) for i in (1, 2))
    difference = low > high and not SCORE.search(match.string[max(0, match.start() - 40) : match.start()])
    return f"{match[1]} {'minus' if difference else 'to'} "


def formula(match: Match) -> str:
    """C6H12O6: letters one by one, numbers as numbers."""
    pieces = re.findall(r"[A-Za-z]+|\d+", match[0])
    return " ".join(letters(piece) if piece.isalpha() else cardinal(piece) for piece in pieces)


def ion(match: Match) -> str:
    """Fe^3+, OH-: the formula and its charge."""
    name, count, sign = (group for group in match.groups() if group is not None)
    pieces = re.findall(r"[A-Za-z]+|\d+", name)
    words = " ".join(letters(piece) if piece.isalpha() else cardinal(piece) for piece in pieces)
    return f"{words} {cardinal(count) + ' ' if count else ''}{'plus' if sign == '+' else 'minus'}"


def file_name(match: Match) -> str:
    """setup.py: "setup dot P.Y."."""
    stem, *extensions = match[0].split(".")
    stem = stem.lower() if len(stem) > 4 and stem.isupper() else stem
    stem = re.sub(r"_+", " underscore ", stem.strip("_"))
    said = [FILE_WORDS.get(name.lower()) or (name if len(name) > 4 else letters(name)) for name in extensions]
    return " dot ".join([stem, *said])


def quantity(match: Match) -> str:
    """5 km², 27-inch, 30 ft/s."""
    number, sign, unit = match.groups()
    before = match.string[: match.start()]
    lasts = re.search(r"\b(?:took|takes?|for|lasted|lasts|after|every|minutes?) $", before)
    round_number = number.endswith("0") and not (lasts and len(number) < 4)
    decade = sign == "" and unit == "s" and (round_number or before.endswith("the "))
    if decade or (unit in ("N", "W") and re.match(r" [A-Z\d]", match.string[match.end() :])):  # 120 W 45th Street
        return match[0]
    one = number in ("1", "1.0") or sign == "-"
    return f"{grouped(number)} {measure(unit, one)}"


def hours(match: Match) -> str:
    """2h30, 2h 30m."""
    hour, minutes, unit = match.groups()
    return f"{hour} {measure('h', hour == '1')} {minutes}" + (f" {measure('min', minutes == '1')}" if unit else "")


def plural_number(digits: str) -> str:
    """F-35s: "thirty fives"."""
    words = cardinal(digits)
    return f"{words}es" if words.endswith("x") else f"{words}s"


def unclosed(match: Match) -> str:
    """27" is a length unless the sign closes a quotation."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    opened = len(re.findall(r"(?<!\S)[(\[]?[\"“](?!\s)", before)) > len(re.findall(r"(?<=[^\s\d])[\"”]", before))
    if before[-1:] in ('"', "“") or (opened and match[0][-1] not in after):
        return match[0]
    one = re.match(r" (?!tall|wide|long|high|deep|thick|x\b|by\b|and\b|or\b|of\b|is\b|in\b|at\b)[a-zA-Z]", after)
    number = re.sub(r" ?(\d+)/(\d+)$", lambda part: f" and {fraction_words(part[1], part[2])}", match[1])
    return f"{number.removeprefix(' and ')} {'inch' if one or match[1] == '1' else 'inches'}"


def feet(match: Match) -> str:
    return f"{match[1]} {'foot' if match[1] == '1' else 'feet'} {match[2]} {'inch' if match[2] == '1' else 'inches'}"


def closed_feet(match: Match) -> str:
    """5' is a length unless the sign closes a quotation."""
    opened = re.search(r"(?<!\w)['‘](?=[A-Za-z])", match.string[: match.start()])
    return match[0] if opened else f"{match[1]} {'foot' if match[1] == '1' else 'feet'}"


def comma_list(match: Match) -> str:
    """1,5 is a decimal, 1,2,3 a list, 12,34,567 an Indian number."""
    parts = match[0].split(",")
    if len(parts) == 2:
        return match[0] if len(parts[1]) == 3 and parts[0] != "0" else ".".join(parts)
    if len(parts[-1]) == 3 and all(len(part) == 2 for part in parts[1:-1]):
        return f"{int(''.join(parts)):,}"
    return match[0] if all(len(part) == 3 for part in parts[1:]) else ", ".join(parts)
