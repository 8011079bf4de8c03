"""Names of units, currencies, abbreviations, elements, file types and signs."""

import re
from collections.abc import Iterable

PREFIXES = {
    "k": "kilo", "K": "kilo", "M": "mega", "G": "giga", "T": "tera", "P": "peta", "h": "hecto", "d": "deci",
    "c": "centi", "m": "milli", "µ": "micro", "n": "nano", "p": "pico",
}  # fmt: skip
# Symbol, name, and the prefixes that are in use; "-" stands for none.
METRIC = """
m meter -kdcmµn|g gram -kmµn|L liter -hdcmµ|l liter -hdcmµ|s second -mµn|W watt -kMGTm|Wh watt_hour -kMGT|V volt -kMm
A amp kmµ|Ah amp_hour -m|J joule -kMG|N newton -kM|Pa pascal -hkMG|Hz hertz -kMGT|B byte kKMGTP|b bit MGT|bit bit kMG
bps bit_per_second -kMGT|ohm ohm -kM|mol mole -mµ|eV electron_volt -kMG|cal calorie -k|bar bar -m|t ton -k|F farad mµnp
"""
OTHER = {
    "ft": "foot", "in": "inch", "yd": "yard", "yds": "yard", "mi": "mile", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "fl oz": "fluid ounce", "gal": "gallon", "qt": "quart", "tsp": "teaspoon", "tbsp": "tablespoon",
    "Tbsp": "tablespoon", "tbs": "tablespoon", "ha": "hectare", "ac": "acre", "h": "hour", "hr": "hour", "hrs": "hour",
    "min": "minute", "mins": "minute", "sec": "second", "secs": "second", "wk": "week", "wks": "week", "yr": "year",
    "yrs": "year", "mo": "month", "mos": "month", "bpm": "beat per minute", "mph": "mile per hour",
    "kph": "kilometer per hour", "kmh": "kilometer per hour",
    "rpm": "revolution per minute", "fps": "frame per second", "psi": "pound per square inch", "cc": "cubic centimeter",
    "ppm": "part per million", "ppb": "part per billion", "dpi": "dot per inch", "px": "pixel", "dB": "decibel",
    "dBA": "decibel", "KiB": "kibibyte", "MiB": "mebibyte", "GiB": "gibibyte", "TiB": "tebibyte", "mcg": "microgram",
    "atm": "atmosphere", "Nm": "newton meter", "ly": "light year",
   "lm": "lumen", "lx": "lux", "kn": "knot", "hp": "horsepower", "mmHg": "millimeter of mercury",
    "pct": "percent", "°": "degree", "°C": "degree Celsius", "°F": "degree Fahrenheit", "°K": "kelvin",
}  # fmt: skip
IRREGULAR = {
    "foot": "feet", "inch": "inches", "lux": "lux", "horsepower": "horsepower", "percent": "percent",
    "yen": "yen", "won": "won", "baht": "baht", "yuan": "yuan", "rand": "rand", "penny": "pence",
    "Swedish krona": "Swedish kronor", "krone": "kroner",
}  # fmt: skip
NAMES = OTHER | {
    prefix.strip("-") + symbol: PREFIXES.get(prefix, "") + name.replace("_", " ")
    for symbol, name, prefixes in (entry.split() for entry in re.split(r"[|\n]", METRIC.strip()))
    for prefix in prefixes
}
LENGTHS = {"meter", "foot", "inch", "yard", "mile"}
PER = "hour hr day week month year minute second night person mile kilogram pound gallon liter unit".split()


def alternatives(words: Iterable[str]) -> str:
    """A pattern of any of the words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


AMBIGUOUS = {"in", "ac", "lm", "lx"}
SYMBOL = (
    rf"(?:(?:sq|cu)\.? in\b|(?:(?:sq|cu)\.? )?(?:{alternatives(set(NAMES) - AMBIGUOUS)}))(?:[²³]|\^[23]|(?<=m)[23])?"
)
UNIT = rf"(?:{SYMBOL}(?:/(?:\d+ )?\d*(?:{SYMBOL}|{'|'.join(PER)}))?)(?![\w'’²³^]|/\w)"


def plural(name: str) -> str:
    """More than one of a unit: "miles per hour", "degrees Celsius", "square feet"."""
    for rest in (" per ", " Celsius", " Fahrenheit", " of "):
        if rest in name:
            head, _, tail = name.partition(rest)
            return plural(head) + rest + tail
    if name.endswith("hertz"):
        return name
    first, _, last = name.rpartition(" ")
    return IRREGULAR.get(name, f"{first} {IRREGULAR.get(last, last + 's')}".strip())


def base(symbol: str) -> str:
    """The name of a unit without what it is divided by."""
    match = re.fullmatch(r"(?:(sq|cu)\.? )?(.*?)\^?([²³23])?", symbol)
    assert match
    alone = str(match[2])
    name = NAMES.get(alone, alone)
    power = {"sq": "square", "cu": "cubic", "²": "square", "2": "square", "³": "cubic", "3": "cubic"}.get(
        match[1] or match[3]
    )
    if power and name == "second":
        return f"second {'squared' if power == 'square' else 'cubed'}"
    return f"{power} {name}" if power else name


def measure(unit: str, one: bool) -> str:
    """A unit in words, singular or plural."""
    top, *below = unit.split("/")
    words = base(top) if one else plural(base(top))
    for divisor in below:
        number = re.match(r"\d*", divisor)
        count = number[0] if number else ""
        name = base(divisor[len(count) :].strip())
        words += f" per {count} {plural(name)}" if count else f" per {name}"
    return words


CURRENCY = {
    "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", "₩": "won", "₽": "ruble", "₺": "lira",
    "₴": "hryvnia", "₫": "dong", "₪": "shekel", "฿": "baht", "₿": "bitcoin", "₦": "naira", "₱": "peso", "₡": "colon",
    "CHF": "Swiss franc", "USD": "dollar", "EUR": "euro", "GBP": "pound", "JPY": "yen", "INR": "rupee",
    "CAD": "Canadian dollar", "AUD": "Australian dollar", "NZD": "New Zealand dollar", "CNY": "yuan", "RMB": "yuan",
    "KRW": "won", "SEK": "Swedish krona", "ZAR": "rand", "BRL": "real", "MXN": "Mexican peso", "Rs": "rupee",
    "PLN": "Polish zloty", "zł": "zloty", "CZK": "Czech koruna", "Kč": "koruna", "NOK": "Norwegian krone",
    "DKK": "Danish krone", "HKD": "Hong Kong dollar", "SGD": "Singapore dollar", "THB": "baht", "BTC": "bitcoin",
    "US$": "dollar", "C$": "Canadian dollar", "CA$": "Canadian dollar", "A$": "Australian dollar",
    "AU$": "Australian dollar", "NZ$": "New Zealand dollar", "HK$": "Hong Kong dollar", "S$": "Singapore dollar",
    "R$": "real",
}  # fmt: skip
SPOKEN_SIGNS = {
    "≤": "less than or equal to", "≥": "greater than or equal to", "≠": "not equal to", "≈": "approximately",
    "≡": "identical to", "≅": "approximately", "∞": "infinity", "√": "the square root of", "‰": "per mille",
    "™": "trademark", "®": "registered", "←": "from", "⇒": "implies", "↔": "to and from", "∼": "about", "−": "minus",
    "‱": "per ten thousand", "†": "dagger", "¬": "not",
}  # fmt: skip
# What comes after the dot of a file's name, and which of these are read as words; others are read by their letters.
EXTENSIONS = (
    "py md csv tsv yaml yml json jsonl txt pdf jpg jpeg png gif svg webp html htm css js ts tsx jsx cpp hpp rs go "
    "java sh toml ini cfg conf log zip gz bz tar xz exe dll doc docx xls xlsx ppt pptx mp3 mp4 wav flac ogg avi mov "
    "mkv xml sql ipynb bat lock env rb php swift kt tex bib npz npy onnx safetensors gguf iso dmg apk parquet bak "
    "tmp bin net"
).split()
FILE_WORDS = {"json": "jason", "jsonl": "jason L.", "mp3": "M.P. three", "mp4": "M.P. four", "docx": "doc X."} | {
    word: word
    for word in "zip tar log lock bat gif jpeg java swift go toml yaml wave bin doc mov safetensors parquet net".split()
}
ABBREVIATIONS = {
    "p": "page", "pp": "pages", "pg": "page", "pgs": "pages", "eq": "equation", "eqs": "equations", "eqn": "equation",
    "sec": "section", "secs": "sections", "fig": "figure", "figs": "figures", "tab": "table", "vol": "volume",
    "vols": "volumes", "ch": "chapter", "chap": "chapter", "chs": "chapters", "art": "article", "par": "paragraph",
    "ex": "example", "app": "appendix", "ver": "version", "ext": "extension", "nr": "number", "rm": "room",
    "rt": "route", "rte": "route", "est": "established", "min": "minimum", "max": "maximum", "op": "opus",
    "approx": "approximately",
}  # fmt: skip
SHORTENED = {
    "approx": "approximately", "assoc": "association", "avg": "average", "dept": "department", "est": "established",
    "govt": "government", "max": "maximum", "min": "minimum", "misc": "miscellaneous", "univ": "university",
}  # fmt: skip
COMPASS = {"N": "north", "S": "south", "E": "east", "W": "west"}
STREETS = {"Dr": "Drive", "Ct": "Court", "Pl": "Place", "Sq": "Square", "Ter": "Terrace", "Cir": "Circle"}
NOT_STREETS = "Ask Call Dear Good Hello Hi My No Our See Tell Thanks The This Yes And But Is Was".split()
ELEMENTS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Nd W Re Os Ir Pt Au Hg Tl Pb Bi Po Rn Ra Th U Pu"
).split()
ANIONS = "OH Cl Br NO3 HCO3 HSO4 ClO4 MnO4".split()
SALTS = (
    "NaCl KCl LiCl AgCl HCl HBr HCN NaF NaBr NaOH KOH KBr KI NaI LiF CaO MgO ZnO CuO FeO FeS ZnS GaAs GaN SiC"
).split()
