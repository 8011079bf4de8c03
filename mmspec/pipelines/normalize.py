"""Text as it is spoken: numbers, units, money, dates, formulas, abbreviations and signs in words.

    normalize = Normalizer(G2P().tagger)
    normalize("Use 2 1/2 cups at 9.8 m/s.")  # "Use 2 and a half cups at 9.8 meters per second."

hibari reads plain numbers, years, clock times, most dates, dollars and many abbreviations, and those are left to it.
The rules hold what hibari misreads (docs/LOG.md compares it with other libraries). They apply in order, each to the
output of the one before.
"""

import re
from collections.abc import Callable, Sequence

from mmspec.pipelines.counts import COUNT, MONTH, count
from mmspec.pipelines.spoken import (
    Match,
    cardinal,
    closed_feet,
    comma_list,
    continental,
    date,
    day_name,
    feet,
    file_name,
    formula,
    grouped,
    hours,
    ion,
    minus,
    mixed,
    money_range,
    month_name,
    month_of_year,
    numeric_date,
    ordinal,
    part,
    phone,
    plural_number,
    quantity,
    ratio,
    scale,
    slash,
    spell,
    unclosed,
)  # fmt: skip
from mmspec.pipelines.units import (
    ABBREVIATIONS,
    ANIONS,
    COMPASS,
    CURRENCY,
    ELEMENTS,
    EXTENSIONS,
    NAMES,
    NOT_STREETS,
    PER,
    SALTS,
    SHORTENED,
    SPOKEN_SIGNS,
    STREETS,
    UNIT,
    alternatives,
    base,
    measure,
    plural,
)

NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
START = r"(?<![\w.,/:$£€-])(?<![\w][.,/:-])"  # of a number that stands by itself
END = r"(?!\w|[.,:/-]\d)"
DASH = r"(?: ?[-–] ?|[—~])"
SCALE = r"(?: ?(?:hundred|thousand|million|billion|trillion)\b|(?:[kKmMbB]|bn|tn)\b)"
SHORT_MONTH = r"(?:Jan|Feb|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)"
DAY = r"(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)"
SIGN = "[€$£]"
SUM = r"(?:\d{1,3}(?: \d{3})+(?:,\d\d)?|\d+(?:[.,]\d+)*)"
TIME = r"\d{1,2}(?::\d\d)?(?: ?[ap]\.?m\b\.?| ?[AP]\.?M\b\.?)?"
MILLIONS = "(?:people|users|copies|views|downloads|customers|subscribers|followers|jobs|households|votes|shares)"
PER_UNIT = alternatives([*NAMES, *PER])
SENTENCE_BEGINS = "He|She|It|They|We|I|The|A|Then|But|And|In|On|This|That|There|You"
ATOM = rf"(?:{alternatives(ELEMENTS)})"
CODES = alternatives(code for code in CURRENCY if code[0].isalpha() and "$" not in code)
DOLLARS = alternatives(code[:-1] for code in CURRENCY if code[1:] and code.endswith("$"))
OTHER_SIGNS = "[¥₹₩₽₺₴₫₪฿₿₦₱₡]"


def amount(currency: str, number: str, size: str | None) -> str:
    """ "80 Swiss francs": a sum in a currency whose cents hibari does not know."""
    if currency == "EUR" or re.search(r",\d\d?$", number):
        number = continental(number)
    one = number == "1" and not size
    return f"{grouped(number)}{scale(size)} {CURRENCY[currency] if one else plural(CURRENCY[currency])}"


def version(match: Match) -> str:
    """v1.2, 10.0.19045."""
    points = " point ".join(part(digits) if len(digits) > 2 else cardinal(digits) for digits in match[2].split("."))
    return ("version " if match[1] else "") + points + (f" {match[3][1:].replace('.', ' point ')}" if match[3] else "")


def address(match: Match) -> str:
    """127.0.0.1:80, with its port."""
    words = " dot ".join(map(part, match[1].split(".")))
    return words + "".join(
        f"{word}{spell(digits)}" for word, digits in ((" port ", match[2]), (" slash ", match[3])) if digits
    )


# Patterns and what is written for them; a function is given the match.
RULES: list[tuple[str, str | Callable[[Match], str]]] = [
    # Signs that stand for others
    (r"\[([^\[\]\n]*)\](?!\()|\{([^{}\n]*)\}", lambda m: f"({m[1] or m[2] or ''})"),
    (
        r"(?<![^\s(\"'`])(?:~|\.\.?)?(?:/[\w.+-]+)+/?(?!\S*[/(])",
        lambda m: m[0].replace("~", "tilde").replace("/", " slash ").strip(),
    ),
    (rf"(?<![\w-])((?:{ATOM}\d*)+?)\^?(\d?)(\+)(?![\w+-])|(?<![\w-])((?:{ATOM}\d*)+)\^(\d?)([+-])(?![\w+-])", ion),
    (rf"(?<![\w-])({alternatives(ANIONS)})()([-−])(?![\w+-])", ion),
    (r"(?<![\w.])\.(?=\d)(?!\d+[ -](?:cal|Magnum))", "0."),
    (r"(?<=batting average )(\w+ )0(\.\d{3})\b", r"\1\2"),
    (r"(?<=\d)(?: \* |\*)(?=\d)", " × "),
    (r"\^[-−]", "^ minus "),
    (r"<=|=<", "≤"),
    (r">=", "≥"),
    (r"!=|=/=", "≠"),
    (r"(?<=\w) ?(?:->|=>|-->|==>) ?(?=\w)", " to "),
    (r"\+/-|\+-", "±"),
    (r"(?<=\w )==(?= \w)", "="),
    (r"(?<=[\w:])\\(?=\w)", " backslash "),
    (r"§§ ?", "sections "),
    (r"(?<!\w)_+(?=\w)|(?<=\w)_+(?!\w)|~~", ""),
    # Minus
    (rf"(?<![\w.])({NUMBER}(?: ?[-–+×÷*] ?{NUMBER})+)(?= ?[=≈≠<>≤≥])", lambda m: re.sub(" ?[-–] ?", " minus ", m[1])),
    (rf"(?<![\w.,/])({NUMBER}) - (?=({NUMBER}))", minus),
    (rf"((?<!\S)[(\[]?[\"'“‘`])[-–−](?={SIGN}?\d)", r"\1minus "),
    (r"(?<![a-z])([knxyzt])-(?=\d)", r"\1 minus "),
    (r" ?− ?(?=[\w$£€√∞.(])", " minus "),
    (rf"({SIGN})[-–](?=\d)", r"minus \1"),
    (rf"(?<![\w)\]%‰°\"'’.,–-])(?<!\d )[–-](?={SIGN}?\d)", "minus "),
    (
        rf"{START}(\d+(?:\.\d+)?)[eE]([+-]?)(\d{{1,3}})(?!\w)",
        lambda m: f"{m[1]} e {dict([('-', 'minus '), ('+', 'plus ')]).get(m[2], '')}{m[3]}",
    ),
    # Money
    (r"(?<![\w.,+-])(?:\d{1,2}(?: \d{3}){2,}|\d{1,3}(?: \d{3})* 000)(?![\w-]| \d)", lambda m: m[0].replace(" ", ",")),
    (r"(?<![\w.,'’])\d{1,3}(?:['’]\d{3})+(?![\w'’])", lambda m: re.sub("['’]", ",", m[0])),
    (rf"(?<=\d),[-–—]+(?= ?{SIGN})", ""),
    (r"(?<![\d.,])\d{1,2}(?:,\d\d)+,\d{3}(?![\d,])", lambda m: f"{int(m[0].replace(',', '')):,}"),
    (rf"({SIGN}) (?=\d)", r"\1"),
    (rf"(?<=[A-Za-z]:)(?={SIGN}\d)", " "),
    (
        rf"(?<![\w.,$£€])({SUM}){DASH}({SUM}) ?({SIGN})(?!\d)",
        lambda m: f"{m[3]}{continental(m[1])}-{m[3]}{continental(m[2])}",
    ),
    (rf"(?<![\w.,$£€])({SUM}) ?({SIGN})(?!\d)", lambda m: m[2] + continental(m[1])),
    (rf"({SIGN})(\d[\d.]*,\d\d?)(?!\d|,\d)", lambda m: m[1] + continental(m[2])),
    (r"\bUS\$(?=\d)", "$"),
    (rf"({SIGN})({NUMBER})({SCALE}|){DASH}\1?({NUMBER})({SCALE}|)(?!\w)", money_range),
    (r"(?<=\d) ?bn\b", " billion"),
    (r"(?<=\d)tn\b", " trillion"),
    (rf"({SIGN})(\d+\.\d{{3,}})(?!\d)", lambda m: f"{m[2]} {plural(CURRENCY[m[1]])}"),
    (rf"({SIGN}[\d,]*\.\d)(?!\d|\.\d)(?!{SCALE})", r"\g<1>0"),
    (rf"(?<!\w)((?:{DOLLARS})\$)({NUMBER})({SCALE})?", lambda m: amount(m[1], m[2], m[3])),
    (rf"\b({CODES})\.? ?({SUM})({SCALE})?(?!\w)", lambda m: amount(m[1], m[2], m[3])),
    (rf"{START}({SUM})({SCALE})? ({CODES})\b", lambda m: amount(m[3], m[1], m[2])),
    (rf"({OTHER_SIGNS}) ?({NUMBER})({SCALE})?", lambda m: amount(m[1], m[2], m[3])),
    (rf"{START}({NUMBER})({SCALE})? ?({OTHER_SIGNS})", lambda m: amount(m[3], m[1], m[2])),
    # Telephones, addresses and versions
    (
        r"(?<![\w.,])\d{1,3}\.\d{3}\.\d{3}(?!\w|\.\d)|(?<![\w.,])\d{1,3}(?:\.\d{3})+,\d\d?(?!\w)",
        lambda m: continental(m[0]),
    ),
    (r"(?<![\w.+-])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}(?!\w)", phone),
    (r"(?<![\w.,/-])(?:1[ .-]?)?\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}(?![\w-])", phone),
    (r"(?<![\w.,/-])(?:1[ .-])?(?:\d{3}([ .-])\d{3}\1)\d{4}(?![\w-])", phone),
    (r"(?<![\w.,/$£€-])(?:\d{3}-\d{4}|\d{3}-\d\d-\d{4}|\d{5}-\d{4}|0\d{2,4} \d{3,4} \d{3,4})(?![\w-]|[.,/]\d)", phone),
    (r"(?<![\w.,/-])\d{4}([ -])(?:\d{4}\1){2}\d{4}(?![\w-])", phone),
    (r"(?<![\w.,/$£€-])(?=(?:\d-?){9})\d+(?:-\d+){3,}(?![\w-])", phone),
    (r"(?<![\w.,/-])(\d{4})-(0[1-9]|1[0-2])(?![\w-]|[.,/]\d)", month_of_year),
    (r"\b(1)-(8\d\d)-(?=[A-Z])", lambda m: f"one, {spell(m[2])}, "),
    (r"(?i)\b((?:call|dial|phone|ring) )([1-9]11|999|112)\b(?![-.]\d)", lambda m: m[1] + spell(m[2])),
    (r"(?<![\w.])(\d{1,3}(?:\.\d{1,3}){3})(?::(\d{1,5}))?(?:/(\d{1,2}))?(?![\w]|\.\d)", address),
    (r"(?<![\w.,])(\d{1,2})([.-])(\d{1,2})\2(\d{4})(?![\w]|[.-]\d)", numeric_date),
    (r"(?<=\d-\d\d)T(?=\d\d:)", " at "),
    (r"(?<=\d:\d\d)Z\b", " Z"),
    (
        r"(?<=\d:\d\d)([+-])0?(\d\d?)(?::?00)(?!\d)",
        lambda m: f" {'plus' if m[1] == '+' else 'minus'} {cardinal(m[2])}",
    ),
    (rf"(?<![\w-])(\d\d?)-({MONTH})-(\d{{4}})(?![\w-])", lambda m: f"{int(m[1])} {m[2]} {m[3]}"),
    (
        r"(?<![\w.,/-])(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?![\d/-]|\.\d)",
        lambda m: date(m[1], int(m[2]), int(m[3])) or m[0],
    ),
    (r"(?<![\w.])([vV]\.? ?)(\d+(?:\.\d+)*)(-[a-z]+[.-]?\d*)?(?![\w-]|\.\w)", version),
    (r"(?<![\w.,])()(\d+(?:\.\d+){2,})(-[a-z]+[.-]?\d*)?(?![\w-]|\.\w)", version),
    (r"(?<![\w.,:/-])0(?:0|\d{2,})(?![.,:/-]?\d)", lambda m: spell(m[0])),
    # Files, languages, formulas
    (rf"(?<![\w@])[\w-]*\w(?:\.(?i:{alternatives(EXTENSIONS)}))+(?!\w|\.\w)", file_name),
    (r"(?<![\w@.])[a-z_]\w+\.[ch](?!\w|\.\w)", file_name),
    (r"(?<![\w.])\.(?=[A-Za-z]{2})", "dot "),
    (r"(?<=[a-z]{2})\.(?=[a-z]{2}[a-z_]*(?:\b|\())(?!\w*\.\s)", " dot "),
    (r"\bdot NET\b", "dot net"),
    (r"(?<![\w#])([A-GJ])#(?!\w)", r"\1 sharp"),
    (rf"(?<![\w-])(?=[A-Za-z()]*\d)(?:{ATOM}\d{{0,3}}|\((?:{ATOM}\d*)+\)\d*){{2,}}(?!\w|-\d)", formula),
    (rf"(?<![\w-])(?:{alternatives(SALTS)})(?!\w|-\d)", formula),
    # Abbreviations
    (
        rf"(?i)(?<![\w.])(?<!\d )({alternatives(ABBREVIATIONS)})\. ?(?=\(?\d|[IVX]+\b)",
        lambda m: (ABBREVIATIONS[m[1].lower()].title() if m[1].istitle() else ABBREVIATIONS[m[1].lower()]) + " ",
    ),
    (
        rf"(?<![\w.])(?<!\d )({alternatives([*SHORTENED, *map(str.title, SHORTENED)])})\.(?= [a-z]|,)",
        lambda m: SHORTENED[m[1].lower()],
    ),
    (r"(?<![\w.])(\d+) ([NSEW])\.? (?=[A-Z][a-z])", lambda m: f"{m[1]} {COMPASS[m[2]]} "),
    (r"(?<!\d )\b(Figs?|Eqs?|Sec|[Vv]ol|Ch|Chap|pp|pg|Rm) (?=\d)", lambda m: ABBREVIATIONS[m[1].lower()] + " "),
    (
        rf"(?<![\w.])((?!(?:{alternatives(NOT_STREETS)}) )[A-Z]\w+ )({alternatives(STREETS)})\."
        rf"(?=\W*$|,| [a-z(&\d]| (?:{SENTENCE_BEGINS})\b)",
        lambda m: m[1] + STREETS[m[2]] + ("." if m.end() == len(m.string) else ""),
    ),
    # Dates
    (rf"\b({DAY})(?:\.?{DASH})({DAY})\b(?!\w)", lambda m: f"{day_name(m[1])} to {day_name(m[2])}"),
    (
        rf"\b({DAY})\b(?!['’-])\.?(?=,? ?(?:\d|{MONTH}\b|the \d|at \d|(?:morning|night|evening|afternoon)\b))",
        lambda m: day_name(m[1]),
    ),
    (rf"(?<=\b[oO]n )({DAY})\b(?!['’-])", lambda m: day_name(m[1])),
    (r"\b([A-Z][a-z]+day)[-–]([A-Z][a-z]+day)\b", r"\1 to \2"),
    (rf"\b({MONTH})[-–]({MONTH})\b", lambda m: f"{month_name(m[1])} to {month_name(m[2])}"),
    (
        rf"\b({MONTH})\.? (\d\d?)(?:st|nd|rd|th)?{DASH}(\d\d?)(?:st|nd|rd|th)?\b(?!:)",
        lambda m: f"{month_name(m[1])} {ordinal(int(m[2]))} to {ordinal(int(m[3]))}",
    ),
    (
        rf"{START}(\d\d?){DASH}(\d\d?) ({MONTH})\b",
        lambda m: f"the {ordinal(int(m[1]))} to the {ordinal(int(m[2]))} of {month_name(m[3])}",
    ),
    (
        rf"(?:\b[Tt]he )?{START}([12]?\d|3[01]) ({MONTH})\b(?!['’-])",
        lambda m: f"the {ordinal(int(m[1]))} of {month_name(m[2])}",
    ),
    (rf"\b({SHORT_MONTH}|Mar)\.? (?=\d{{4}}\b)", lambda m: month_name(m[1]) + " "),
    (
        rf"\b((?:[Ii]n|by|of|to|[Ss]ince|until|from|last|next|early|late|this|mid)[ -])({SHORT_MONTH})\b(?![.\w'’-])",
        lambda m: m[1] + month_name(m[2]),
    ),
    # Feet, inches and angles
    (
        r"(\d+)° ?(\d+)'(?: ?(\d+)\")?",
        lambda m: f"{m[1]} degrees {m[2]} minutes" + (f" {m[3]} seconds" if m[3] else ""),
    ),
    (
        r"(\d ?°|\d degrees \d+ minutes(?: \d+ seconds)?) ?([NSEW])\b(?! [A-Z])",
        lambda m: f"{m[1]} {COMPASS[m[2]]}",
    ),
    (r"(?<=\d°) (?=[CF]\b)", ""),
    (rf"{START}({NUMBER}) K\b(?! (?:run|race|loan|plan)s?\b)", r"\1 kelvin"),
    (r"(?<![\w.,:])(\d+) ?h ?(\d+)( ?m(?:ins?)?\b)?(?!\w)", hours),
    (
        r"(?<![\w.,:])(\d+)(?: ?m(?:ins?)?| minutes?) ?(\d+) ?s(?:ecs?)?\b",
        lambda m: f"{m[1]} {measure('min', m[1] == '1')} {m[2]} {measure('s', m[2] == '1')}",
    ),
    (r"(?<![\w.'])(\d+)['’] ?(\d{1,2}(?:\.\d)?)(?:[\"”]|'')", feet),
    (r"(?<![\w.'])([3-8])['’](\d|1[01])(?![\w'\"])", feet),
    (r"(?<![\w.'])(\d+)['’](?= (?:tall|wide|long|high|deep)\b)", r"\1 feet"),
    (r"(?<![\w.'])(\d+)' ?(?:x|×|by) ?(\d+)'", r"\1 feet by \2 feet"),
    (r"(?<![\w.])(?<!['’]\w)(\d+)['’](?=[,;:!?)]|\.?$)", closed_feet),
    (r"(?<=\d)-in\b(?!-)\.?(?= [a-z])", " inch"),
    (r"(?<=[\d½¼¾⅐-⅞]) ?in\.(?=[)”\"’,;])", " inches"),
    (r"(?<=[\d½¼¾⅐-⅞]) ?in\.$", " inches."),
    (rf"{START}((?:\d+ )?\d+/\d+|\d+(?:\.\d+)?)[\"”]", unclosed),
    (r"(\d) ?in\b\.?(?= (?:tall|wide|long|high|deep|thick|x|by|of (?:rain|snow))\b)", r"\1 inches"),
    (r"(\d ?(?:ft|feet|foot)\.? \d+) in\b\.?(?!$)", r"\1 inches"),
    # Decimal commas, fractions, ratios and ranges
    (r"(\d/\d+)(?:-(?=[a-z])|(?:rd|th|nd)s?\b)", r"\1 "),
    (r"(?<![\w/.])(\d\d?)/(\d\d?) (?=time\b)", r"\1 \2 "),
    (r"(?<![\w.,/-])([1-9]\d)[-–]\1(?![\w%-]|[.,/]\d)", r"\1 \1"),
    (r"(?<![\w.,$£€])\d+(?:,\d+)+(?!\w|\.\d)", comma_list),
    (rf"(?<![\w./])(\d+/\d+){DASH}(?=\d+/\d)", r"\1 to "),
    (rf"{START}(\d+)[ -](\d{{1,2}})/(\d{{1,3}})(?: ?-?({UNIT}))?(?![\w/]|[.,]\d)", mixed),
    (rf"(?<![\w./,$£€])(\d{{1,4}}) ?/ ?(\d{{1,4}})(?:[ -]?({UNIT}))?(?![\w/]|[.,]\d)", slash),
    (rf"(\d and )?([¼½¾⅐-⅞]) ?({UNIT})", lambda m: f"{m[1] or ''}{m[2]} {measure(m[3], not m[1])}"),
    (r"(?<![\w.,:/])\d{1,4}(?::(?:\d{1,3}(?:,\d{3})+|\d{1,4}))+(?![\w:]|[.,]\d)", ratio),
    (r"(?<=\d)\.(?=\d\d ?[ap]\.?m\b)", ":"),
    (r"(?i)(\d ?[ap]\.?m\.?)" + DASH + r"(?=\d)", r"\1 to "),
    (r"(\d) ?am\b(?!\.)", r"\1 AM"),
    (r"(?<=:\d\d)" + DASH + r"(?=\d)", " to "),
    (rf"\b((?:\d\d)?\d0s){DASH}(?=['’]?\d\d)", r"\1 to "),
    (rf"(\d ?(?:{UNIT}|%|‰)){DASH}(?=\d)", r"\1 to "),
    (r"(?<![\w.,/-])\d{1,2}(?:-\d{1,2}){2,}(?![\w-]|[.,]\d)", lambda m: m[0].replace("-", " ")),
    (rf"{START}({NUMBER}){DASH}(?={NUMBER}(?!\d|[-–/:]\d))", r"\1 to "),
    (rf"{START}([1-9]\d*) ?x ?(?=\d)", r"\1 by "),
    (rf"{START}(\d{{3,5}})×(?=\d{{3,5}}\b)", r"\1 by "),
    (rf"(\d+(?:st|nd|rd|th)){DASH}(?=\d+(?:st|nd|rd|th)\b)", r"\1 to "),
    # Units
    (r"(?<![\w.,])((?<=[A-Z]-)\d*[1-9]|(?<=[Tt]he )\d{2,3}[1-9])s\b", lambda m: plural_number(m[1])),
    (rf"(\d)m (?={MILLIONS}\b)", r"\1 million "),
    (rf"(?<![\w.,/:$£€])({NUMBER})([ -]?)({UNIT})(?:\.(?= [a-z\d]))?", quantity),
    (rf"({SIGN}[\d.,]*\d{SCALE}?|\d (?:dollars|euros|pounds|cents)) ?/ ?(?=[a-z]{{3}})", r"\1 per "),
    (
        rf"(\d[\d.,]*(?: ?[a-z]+| [A-Z][a-z]+ [a-z]+|%|{SCALE})?) ?/ ?({PER_UNIT})\b",
        lambda m: f"{m[1]} per {base(m[2])}",
    ),
    (r"(?<![\w.,$£€])(\d+(?:,\d{3})*)\.(\d*0)(?!\w|\.\d)", lambda m: f"{cardinal(m[1])} point {spell(m[2])}"),
    (r"(?<=[\w)]) ?≈", " approximately equal to"),
    *((rf" ?{sign} ?", f" {words} ") for sign, words in SPOKEN_SIGNS.items()),
    (rf"({SIGN}|{OTHER_SIGNS})(?!\d)", lambda m: f" {CURRENCY[m[1]]} "),
    (r"(?<=[A-Z]\.)\.(?!\.)", ""),
    # Words with two readings, of which hibari has one
    (
        r"\b((?:I|we|you|they|who|to|not|would|will|may|might|do|did|\w+n['’]t|strongly|also) )(object)\b(?! \w+ing\b)",
        r"\1[\2](/əbʤˈɛkt/)",
    ),
    (
        r"\b([Ll]ead)(?= (?:pipes?|paint|poisoning|pencils?|acid|bullets?|weights?|shot|ore|glass|pellets?)\b)",
        r"[\1](/lˈɛd/)",
    ),
    (r"\b((?:of|contains?|melt|molten) )(lead)(?=[.,;:!?)]|$| (?:and|or)\b)", r"\1[\2](/lˈɛd/)"),
    (
        r"(?<![\d-] )(?<!-)\b([Mm]inute)"
        r"(?= (?:details?|amounts?|quantit|differen|particles?|traces?|fragments?|doses?))",
        r"[\1](/mInˈut/)",
    ),
]


class Normalizer:
    """Text as it is spoken; `tagger` gives the parts of speech of words."""

    def __init__(self, tagger: Callable[[Sequence[str]], list[str]]) -> None:
        self.tagger = tagger
        self.rules = [(re.compile(pattern), instead) for pattern, instead in RULES]

    def __call__(self, text: str) -> str:
        for pattern, instead in self.rules:
            text = pattern.sub(instead, text)
        return COUNT.sub(lambda match: count(match, self.tagger), text)
