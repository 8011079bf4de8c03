"""What is written is said: numbers, units, money, dates, formulas, abbreviations and signs, wherever in a sentence."""

import warnings
from pathlib import Path

import pytest

from mmspec.pipelines.normalize import Normalizer
from mmspec.pipelines.phonemize import SILENT, Phonemizer
from recipes.wren_86.reading import FAULTS, TABLE, UNSEEN, rows

pytest.importorskip("hibari")

FRAMES = [
    "Now {} is here.",
    "It is {}.",
    "It is {}, then.",
    "Is it {}?",
    "(It is {}.)",
    'He said "it is {}."',
    "It is {}!",
]
SPOKEN = {
    "minus": [
        ("5 - 3 = 2", "five minus three = two"),
        ("–1", "minus one"),
        ("−1", "minus one"),
        ("-0.5", "minus zero point five"),
        ("8 − 3", "eight minus three"),
        ("-$40", "minus forty dollars"),
        ("$-5", "minus five dollars"),
        ("−3 °C", "minus three degrees Celsius"),
        ("-3/4", "minus three quarters"),
        ("7 - 12", "seven to twelve"),
    ],
    "powers of ten": [
        ("1e-5", "one e minus five"),
        ("2.5E-10", "two point five e minus ten"),
        ("1E6", "one e six"),
        ("6.02×10^23", "six point zero two times ten to the power of twenty three"),
        ("1.6·10⁻¹⁹", "one point six times ten to the power of minus nineteen"),
        ("10^-9", "ten to the power of minus nine"),
    ],
    "decimals": [
        (".5", "zero point five"),
        ("-.25", "minus zero point two five"),
        ("3.10", "three point one zero"),
        ("2.0", "two point zero"),
        ("1,5", "one point five"),
        ("0,125", "zero point one two five"),
        ("1.234,56", "one thousand two hundred thirty four point five six"),
        ("1,234", "one thousand two hundred thirty four"),
        ("12,34,567", "one million two hundred thirty four thousand five hundred sixty seven"),
    ],
    "fractions": [
        ("1/2", "one half"),
        ("3/16 inch", "three sixteenths inch"),
        ("5/8", "five eighths"),
        ("2 1/2", "two and a half"),
        ("1 3/4 cups", "one and three quarters cups"),
        ("2-1/2 inches", "two and a half inches"),
        ("10/2 = 5", "ten over two = five"),
        ("22/7", "twenty two over seven"),
        ("24/7", "twenty four seven"),
        ("50/50", "fifty fifty"),
        ("9/11", "nine eleven"),
        ("3/32 of it", "three thirty seconds of it"),
        ("½ lb", "one half pound"),
        ("a 1/4-inch bolt", "a one quarter inch bolt"),
    ],
    "ratios": [
        ("2:1", "two to one"),
        ("16:9", "sixteen to nine"),
        ("1:500", "one to five hundred"),
        ("1:2:3", "one to two to three"),
        ("14:30", "fourteen thirty"),
        ("1:10,000", "one to ten thousand"),
        ("a 10:10 ratio", "a ten to ten ratio"),
        ("John 3:16", "John three sixteen"),
    ],
    "ranges": [
        ("6–7", "six to seven"),
        ("10-15%", "ten to fifteen percent"),
        ("10%–15%", "ten percent to fifteen percent"),
        ("20~30", "twenty to thirty"),
        ("4—6", "four to six"),
        ("5-10 km", "five to ten kilometers"),
        ("5 km–10 km", "five kilometers to ten kilometers"),
        ("$5-$10", "five to ten dollars"),
        ("£10–20", "ten to twenty pounds"),
        ("10-20 €", "ten to twenty euros"),
        ("$1-2 million", "one to two million dollars"),
        ("8am-5pm", "eight A.M. to five P.M."),
        ("9-5pm", "nine to five P.M."),
        ("1914–1918", "nineteen fourteen to nineteen eighteen"),
        ("the 1960s-80s", "the nineteen sixties to eighties"),
        ("Mon-Fri", "Monday to Friday"),
        ("May 5-7", "May fifth to seventh"),
        ("5–7 May", "the fifth to the seventh of May"),
        ("Jan–Mar", "January to March"),
    ],
    "versions": [
        ("v1.2", "version one point two"),
        ("1.2.3", "one point two point three"),
        ("10.0.19045", "ten point zero point one nine zero four five"),
        ("127.0.0.1", "one two seven dot zero dot zero dot one"),
        ("10.0.0.5:8080", "ten dot zero dot zero dot five port eight zero eight zero"),
    ],
    "telephones": [
        ("555-0199", "five five five, zero one nine nine"),
        ("1-800-555-0199", "one, eight zero zero, five five five, zero one nine nine"),
        ("(212) 555-0100", "two one two, five five five, zero one zero zero"),
        ("+1 (212) 555-0100", "plus one, two one two, five five five, zero one zero zero"),
        ("+44 20 7946 0958", "plus four four, two zero, seven nine four six, zero nine five eight"),
        ("212.555.0187", "two one two, five five five, zero one eight seven"),
    ],
    "units": [
        ("9.8 m/s", "nine point eight meters per second"),
        ("9.8 m/s²", "nine point eight meters per second squared"),
        ("5 km²", "five square kilometers"),
        ("1 m³", "one cubic meter"),
        ("20 m2", "twenty square meters"),
        ("2 tbsp", "two tablespoons"),
        ("1 tsp", "one teaspoon"),
        ("5 mL", "five milliliters"),
        ("5.5 L/100km", "five point five liters per one hundred kilometers"),
        ("75 kWh", "seventy five kilowatt hours"),
        ("3.2 GHz", "three point two gigahertz"),
        ("50 µg", "fifty micrograms"),
        ("50 μg", "fifty micrograms"),
        ("10 kΩ", "ten kiloohms"),
        ("90 km/h", "ninety kilometers per hour"),
        ("6'2\"", "six feet two inches"),
        ("5’11”", "five feet eleven inches"),
        ('a 27" screen', "a twenty seven inch screen"),
        ("6 ft 2 in", "six feet two inches"),
        ("3 s", "three seconds"),
        ("120/80 mmHg", "one hundred twenty over eighty millimeters of mercury"),
        ("68°F", "sixty eight degrees Fahrenheit"),
        ("1500 m", "one thousand five hundred meters"),
        ("$5/kg", "five dollars per kilogram"),
        ("60 miles/hour", "sixty miles per hour"),
        ("a 5-km run", "a five kilometer run"),
        ("3x4", "three by four"),
    ],
    "money": [
        ("$0.2737", "zero point two seven three seven dollars"),
        ("27,50 €", "twenty seven euros and fifty cents"),
        ("€1.234,56", "one thousand two hundred thirty four euros and fifty six cents"),
        ("250.000 €", "two hundred fifty thousand euros"),
        ("CHF 80", "eighty Swiss francs"),
        ("1 USD", "one dollar"),
        ("¥5000", "five thousand yen"),
        ("₹500", "five hundred rupees"),
        ("C$20", "twenty Canadian dollars"),
        ("100 ₽", "one hundred rubles"),
        ("$.99", "ninety nine cents"),
        ("EUR 3,50", "three point five zero euros"),
        ("$20/mo", "twenty dollars per month"),
        ("$2.5M", "two point five million dollars"),
    ],
    "dates": [
        ("24.12.2024", "December twenty fourth, twenty twenty four"),
        ("24/12/2024", "December twenty fourth, twenty twenty four"),
        ("24-12-2024", "December twenty fourth, twenty twenty four"),
        ("2024-12-24", "December twenty fourth, twenty twenty four"),
        ("2024/12/24", "December twenty fourth, twenty twenty four"),
        ("12/24", "December twenty fourth"),
        ("Dec 2024", "December twenty twenty four"),
        ("Mon 5 Dec", "Monday the fifth of December"),
        ("Tue, Jan 7", "Tuesday, January seventh"),
        ("1905", "nineteen oh five"),
        ("the '90s", "the nineties"),
        ("2024-05", "May twenty twenty four"),
    ],
    "counts": [
        ("3497 feet", "three thousand four hundred ninety seven feet"),
        ("2750 books", "two thousand seven hundred fifty books"),
        ("4321 small birds", "four thousand three hundred twenty one small birds"),
        ("Room 4321", "Room forty three twenty one"),
    ],
    "abbreviations": [
        ("p. 12", "page twelve"),
        ("pp. 3-5", "pages three to five"),
        ("Eq. 5", "equation five"),
        ("Sec. 2.1", "section two point one"),
        ("§§ 5–7", "sections five to seven"),
        ("on Elm Dr.", "on Elm Drive"),
        ("Dr. Oak", "Doctor Oak"),
    ],
    "formulas": [
        ("CO2", "C.O. two"),
        ("CO₂", "C.O. two"),
        ("NO2", "N.O. two"),
        ("H2O", "H two O"),
        ("H2SO4", "H two S.O. four"),
        ("C6H12O6", "C six H twelve O six"),
        ("Fe2O3", "F.E. two O three"),
        ("Ca(OH)2", "C.A. O.H. two"),
        ("NaCl", "N.A.C.L."),
    ],
    "names": [
        ("setup.py", "setup dot P.Y."),
        ("README.md", "readme dot M.D."),
        ("data.csv", "data dot C.S.V."),
        ("config.yaml", "config dot yaml"),
        ("my_file.txt", "my underscore file dot T.X.T."),
        ("archive.tar.gz", "archive dot tar dot G.Z."),
        ("Node.js", "Node dot J.S."),
        ("C#", "C sharp"),
        ("F#", "F sharp"),
        (".NET", "dot net"),
    ],
    "signs": [
        ("7‰", "seven per mille"),
        ("5 ≠ 7", "five not equal to seven"),
        ("5 != 7", "five not equal to seven"),
        ("x ≤ 5", "x less than or equal to five"),
        ("≥5", "greater than or equal to five"),
        ("x ≈ 3", "x approximately equal to three"),
        ("∞", "infinity"),
        ("√16", "the square root of sixteen"),
        ("±2", "plus or minus two"),
        ("+/-2", "plus or minus two"),
    ],
}
KEPT = [
    "U.S. and e.g. i.e. p.m. a.b",
    "He came 1st of 22 on the 3rd.",
    "The 5-year-old at 10 o'clock, 7 p.m. or 12:05.",
    "In 1969 men walked; by 2030, 1984 was read. In 3000 BC.",
    "It has 1500 seats and 2000 steps for 3000 people.",
    "Yes/no, and/or, w/o, AT&T, R&D, COVID-19, MP3, 4K, F-16, H. G. Wells.",
    "I have 5 in my bag, 3 in 5 and 80s music.",
    "1,000,000 of $3.50, $5, $2.5 million, 50%.",
]


@pytest.fixture(scope="module")
def reader() -> Phonemizer:
    return Phonemizer()


def sound(reader: Phonemizer, text: str) -> str:
    """All phonemes without punctuation, stress and the spaces between letters."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = " ".join(sentence.phonemes for sentence in reader.read(text).sentences)
    return "".join(c for c in read.replace("ənd", "ænd") if c not in SILENT)


@pytest.mark.parametrize(("text", "words"), [case for cases in SPOKEN.values() for case in cases])
def test_spoken(reader: Phonemizer, text: str, words: str) -> None:
    """In mid-sentence, before each sign that ends a clause, in brackets and in quotation marks."""
    for frame in FRAMES:
        assert sound(reader, frame.format(text)) == sound(reader, frame.format(words)), frame


@pytest.mark.parametrize("table", [TABLE, UNSEEN, FAULTS], ids=lambda table: table.stem)
def test_tables(reader: Phonemizer, table: Path) -> None:
    """Each sentence is read in one of the wordings beside it."""
    from recipes.wren_86.reading import sound as heard

    wrong = []
    for text, spoken in rows(table):
        read = " ".join(sentence.phonemes for sentence in reader.read(text).sentences)
        if heard(read) not in {heard(reader.g2p(words, normalize_text=False)) for words in spoken}:
            wrong.append((text, read))
    assert not wrong


@pytest.mark.parametrize("text", KEPT)
def test_kept(reader: Phonemizer, text: str) -> None:
    """What hibari reads rightly is left to it."""
    assert reader.normalize(text) == text


@pytest.mark.parametrize("word", ["kilometers", "Monday", "minus", "euros", "1st", "$5", "+5", "1990s"])
@pytest.mark.parametrize("marks", ['""', "“”", "``", "[]", "{}", "()"])
def test_beside_quotation_marks(reader: Phonemizer, word: str, marks: str) -> None:
    """A word is read beside quotation marks and brackets as it is without them."""
    assert sound(reader, f"The {marks[0]}{word}{marks[1]} now.") == sound(reader, f"The, {word}, now.")


def test_full_width(reader: Phonemizer) -> None:
    """Full-width signs are said as their narrow forms."""
    assert sound(reader, "It is －５％＆＋３.") == sound(reader, "It is -5% & +3.")


def test_sentence_text(reader: Phonemizer) -> None:
    """A sentence's text is what was written; abbreviations before a number do not end it."""
    text = "See p. 12 and Eq. (5) of README.md. It costs $5-$10 (see pp. 3-5). I live on Elm Dr. now."
    assert [sentence.text for sentence in reader.read(text).sentences] == [
        "See p. 12 and Eq. (5) of README.md.",
        "It costs $5-$10 (see pp. 3-5).",
        "I live on Elm Dr. now.",
    ]


def test_quantities_are_not_cut() -> None:
    """A long sentence is not cut between a number and its unit."""
    short, long = Phonemizer(longest=40), Phonemizer(longest=400)
    text = "and then " + "5 km " * 30
    assert sound(short, text) == sound(long, text)


def test_markdown(reader: Phonemizer) -> None:
    """Titles, quotations and emphasis are not read aloud; their words are."""
    text = "# A title\n\n## Another ##\n\n> A quotation.\n\nThis is **bold**, __strong__ and ~~gone~~."
    words = "A title\n\nAnother\n\nA quotation.\n\nThis is bold, strong and gone."
    assert sound(reader, text) == sound(reader, words)


@pytest.mark.parametrize("sign", list("≮≢∑¬¦´¨♥☃"))
def test_unsaid_signs(reader: Phonemizer, sign: str) -> None:
    """A sign is said or named: it does not vanish, nor is it read as the sign without its stroke."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reading = reader.read(f"We have 5 {sign} 7 here.")
    phonemes = reading.sentences[0].phonemes
    assert reading.unsaid == [sign] or len(phonemes) > len("wˌi hæv fˈIv sˈɛvən hˈɪɹ.")


@pytest.mark.parametrize("sign", list("≤≥≠≈∞√‰±×÷→←§¶©™®°%&@+=<>#~^€$£¥₹"))
def test_said_signs(reader: Phonemizer, sign: str) -> None:
    """Each of these has a word of its own."""
    assert len(sound(reader, f"five {sign} seven")) > len(sound(reader, "five seven")) + 1


def test_inline_phonemes_are_kept(reader: Phonemizer) -> None:
    """Phonemes that the text gives are not normalized, whatever their word is."""
    assert "tɛst" in sound(reader, "Say [5 km/h](/tɛst/) now.")


def test_tagger() -> None:
    """Counts are told from years by the part of speech of what follows."""
    normalize = Normalizer(lambda words: ["CD", *("NNS" if word == "zorps" else "NN" for word in words[1:])])
    assert normalize("1234 zorps") == "1,234 zorps" and normalize("1234 zorp") == "1234 zorp"
