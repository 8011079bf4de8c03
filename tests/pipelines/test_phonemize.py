"""From text to phonemes: numbers and abbreviations, sentences and pauses, what cannot be said, and the text of every
error.
"""

import subprocess
import sys
import warnings

import pytest

from mmspec.errors import MmspecError
from mmspec.pipelines.phonemize import CLAUSE, PARAGRAPH, SENTENCE, SILENT, WORD, PhonemizedText, Phonemizer

pytest.importorskip("hibari")

LONG = (
    "When the small boats came back over the bay, heavy with silver fish and the songs of tired men, "
    "the whole town walked down to the harbour; nobody spoke of the storm, nobody counted the hulls, "
    "and the bells, which had been silent since the first grey day of autumn, rang until the evening."
)
MARKED = [("[hibari](/hibˈɑɹi/)", "hibˈɑɹi"), ("[New York](/nujˈɔɹk/)", "nujˈɔɹk")]


@pytest.fixture(scope="module")
def reader() -> Phonemizer:
    return Phonemizer()


def texts(reading: PhonemizedText) -> list[str]:
    return [sentence.text for sentence in reading.sentences]


def said(reader: Phonemizer, text: str) -> str:
    """All phonemes without punctuation and stress: what is said, not how."""
    found = " ".join(sentence.phonemes for sentence in reader.read(text).sentences)
    return " ".join("".join(c for c in found if c == " " or c not in SILENT).split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$5", "five dollars"),
        ("$1", "one dollar"),
        ("$5.20", "five dollars and twenty cents"),
        ("$0.05", "five cents"),
        ("$1,234.56", "one thousand two hundred thirty four dollars and fifty six cents"),
        ("$3M", "three million dollars"),
        ("£3", "three pounds"),
        ("€2.50", "two euros and fifty cents"),
        ("¥100", "one hundred yen"),
        ("$1.5", "one dollar and fifty cents"),
        ("It costs $1.5.", "It costs one dollar and fifty cents."),
        ("$2.5 million", "two point five million dollars"),
        ("$1.5M", "one point five million dollars"),
        ("$1bn", "one billion dollars"),
        ("€2.5tn", "two point five trillion euros"),
        ("costs 20 €", "costs twenty euros"),
        ("a 50$ note", "a fifty dollars note"),
        ("10 $5 notes", "ten five dollars notes"),
        ("-$5", "minus five dollars"),
        ("US$5", "five dollars"),
        ("5\u00a0000", "five thousand"),
        ("1\u202f000\u202f000", "one million"),
        ("agent 007", "agent zero zero seven"),
        ("The code is 0042.", "The code is zero zero four two."),
        ("Open 9:30-17:45.", "Open nine thirty to seventeen forty-five."),
        ("3*4", "three times four"),
        ("42", "forty two"),
        ("3.14", "three point one four"),
        ("1,000,000", "one million"),
        ("-5", "minus five"),
        ("−5", "minus five"),
        ("１２", "twelve"),
        ("٣٤", "thirty four"),
        ("50%", "fifty percent"),
        ("1st", "first"),
        ("22nd", "twenty second"),
        ("1984", "nineteen eighty four"),
        ("1990s", "nineteen nineties"),
        ("1/2", "one half"),
        ("1½ cups", "one and one half cups"),
        ("2⅓ cups", "two and one third cups"),
        ("10²", "ten squared"),
        ("10⁵", "ten to the power of five"),
        ("10⁻¹²", "ten to the power of minus twelve"),
        ("10-20", "ten to twenty"),
        ("555-1234", "five five five one two three four"),
        ("4" * 20, " ".join(["four"] * 20)),
        ("10:30 am", "ten thirty A.M."),
        ("12:05", "twelve oh five"),
        ("2024-03-05", "March fifth, twenty twenty four"),
        ("03/05/2024", "March fifth, twenty twenty four"),
        ("5 March 2024", "the fifth of March twenty twenty four"),
        ("Jan. 3", "January third"),
        ("Dr. Smith", "Doctor Smith"),
        ("Mr. Jones", "Mister Jones"),
        ("St. Louis", "Saint Louis"),
        ("Main St.", "Main Street."),
        ("No. 5", "number five"),
        ("№ 5", "number five"),
        ("Fig. 3", "figure three"),
        ("5 km", "five kilometers"),
        ("20 °C", "twenty degrees Celsius"),
        ("Henry VIII", "Henry the eighth"),
        ("A & B", "A and B"),
        ("me@example.com", "me at example dot com"),
        ("See (https://www.example.org/a).", "See w w w dot example dot org slash a"),
        ("HELLO WORLD", "hello world"),
        ("Ｈｅｌｌｏ ﬁsh", "hello fish"),
        ("cafe\u0301", "café"),
        ("don’t", "don't"),
        ("co\u00adoperate", "cooperate"),
        ("a\x00b\tc\rd", "a b c d"),
    ],
)
def test_spelled_out(reader: Phonemizer, text: str, words: str) -> None:
    """A number, date, sum, abbreviation or odd character is said as its words are."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert said(reader, text) == said(reader, words)


def test_says_something_else(reader: Phonemizer) -> None:
    """Negative control: the comparison above tells texts apart."""
    assert said(reader, "$5") != said(reader, "$6") and said(reader, "10⁵") != said(reader, "105")


def test_known_phonemes(reader: Phonemizer) -> None:
    """The phonemes are misaki's, with stress and punctuation; quotes and spaces around do not matter."""
    assert [sentence.phonemes for sentence in reader.read("  Hello there.\n").sentences] == ["həlˈO ðˈɛɹ."]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One here. Two there! Three? Four… five", ["One here.", "Two there!", "Three?", "Four… five"]),
        ('He said "Hi there." Then he left.', ['He said "Hi there."', "Then he left."]),
        ("(So it was.) Dr. A. Smith came.", ["(So it was.)", "Dr. A. Smith came."]),
        ("Look at No. 5. Then at Fig. 3, i.e. Paris.", ["Look at No. 5.", "Then at Fig. 3, i.e. Paris."]),
        (
            "The U.S. Army came. I like the U.S. She does too.",
            ["The U.S. Army came.", "I like the U.S.", "She does too."],
        ),
        ("A title\nAnd a line\n\nThe next.", ["A title", "And a line", "The next."]),
        ("Pay 3.50 now. No 1.5 is left.", ["Pay 3.50 now.", "No 1.5 is left."]),
    ],
)
def test_sentences(reader: Phonemizer, text: str, wanted: list[str]) -> None:
    """Cut after sentences and lines, with closing quotes, not after titles, initials and abbreviations that run on."""
    assert texts(reader.read(text)) == wanted


def test_wrapped_lines(reader: Phonemizer) -> None:
    """Lines that were wrapped at a width are one sentence, however their ends are written."""
    lines = [
        "The keeper of the lighthouse counted the ships that",
        "Captain Brown had seen, and wrote each one down in",
        "his book.",
    ]
    for end in ("\n", "\r\n", "\r", " \n\t", "\u2028"):
        assert texts(reader.read(end.join(lines))) == [" ".join(lines)]


def test_pauses(reader: Phonemizer) -> None:
    """Longest after a paragraph, shorter after a sentence, none after the last; a piece with nothing to say gives its
    pause away.
    """
    assert PARAGRAPH > SENTENCE > CLAUSE > WORD == 0
    for text in ("One. Two.\n\nThree.", "One. Two. !!\n\n***\n\nThree. ?!", "\n\n--\n\nOne. Two.\u2029Three."):
        assert [sentence.pause for sentence in reader.read(text).sentences] == [SENTENCE, PARAGRAPH, 0.0]


def test_last_stop(reader: Phonemizer) -> None:
    """A sentence that ends in an abbreviation ends in a full stop, so that the voice falls."""
    assert reader.read("It was 5 p.m.").sentences[0].phonemes.endswith("pˌiˈɛm.")
    assert not reader.read("It was five").sentences[0].phonemes.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("longest", [40, 80, 180])
def test_long_sentence(longest: int) -> None:
    """Cut at clauses where there are some near the middle, else at words; nothing is lost, nothing is longer, the
    pauses are short.
    """
    reader = Phonemizer(longest=longest)
    reading = reader.read(LONG)
    assert " ".join(texts(reading)) == LONG
    assert all(len(sentence.phonemes) <= longest for sentence in reading.sentences)
    for sentence in reading.sentences[:-1]:
        assert sentence.pause == (CLAUSE if sentence.text[-1] in ",;" else WORD)
    if longest == 180:
        assert all(sentence.text[-1] in ",;." for sentence in reading.sentences)
    assert said(reader, LONG) == said(Phonemizer(longest=400), LONG)


def test_long_sentence_without_clauses() -> None:
    """Cut between words."""
    reading = Phonemizer(longest=60).read(text := " ".join(["word"] * 50))
    assert " ".join(texts(reading)) == text and {sentence.pause for sentence in reading.sentences} == {WORD}


@pytest.mark.parametrize(
    "word", ["supercalifragilistic" * 8, "hm" * 400, "9" * 15, "1," * 300, "-" * 500 + "x", "http://" + "a.b/" * 100]
)
def test_long_word(word: str) -> None:
    """A word longer than a sentence may be, or than hibari's net reads, is said to its end."""
    reading = Phonemizer(longest=40).read(word)
    assert all(0 < len(sentence.phonemes) <= 40 for sentence in reading.sentences)
    if word.isalpha():
        assert sum(len(sentence.phonemes) for sentence in reading.sentences) > len(word) / 3


@pytest.mark.parametrize(("text", "phonemes"), MARKED)
def test_own_phonemes(reader: Phonemizer, text: str, phonemes: str) -> None:
    """Phonemes that the text gives are taken as they are, also in a sentence that is cut."""
    assert reader.read(f"Say {text} now.").sentences[0].phonemes == f"sˈA {phonemes} nˈW."
    cut = Phonemizer(longest=40).read(" ".join([text] * 30))
    assert len(cut.sentences) > 5 and " ".join(sentence.phonemes for sentence in cut.sentences) == " ".join(
        [phonemes] * 30
    )


def test_unsaid(reader: Phonemizer) -> None:
    """What cannot be said is left out, named once and in order, in one line; marks and format characters are
    no loss.
    """
    with pytest.warns(UserWarning) as caught:
        reading = reader.read("Hi 😀 日本 \u200bthere😀! שלום️ e\u0301\u0323")
    assert reading.unsaid == ["😀", "日", "本", "ש", "ל", "ו", "ם"]
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert str(caught[0].message) == "left out what cannot be said: '😀', '日', '本', 'ש', 'ל', 'ו', 'ם'"
    assert reading.sentences[0].phonemes.startswith("hˈI ðˈɛɹ!")


def test_many_unsaid(reader: Phonemizer) -> None:
    """A long list is cut short in the warning, not in the result."""
    kana = "".join(map(chr, range(0x3042, 0x3062, 2)))
    with pytest.warns(UserWarning, match=r"'あ', .* and 4 more$"):
        assert reader.read(f"Hi {kana}").unsaid == list(kana)


def test_alphabet() -> None:
    """A phoneme that the model does not have is dropped and named."""
    with pytest.warns(UserWarning, match="left out what cannot be said: 'ˈ', 'O'"):
        reading = Phonemizer(alphabet="həl ").read("Hello.")
    assert reading.sentences[0].phonemes == "həl" and reading.unsaid == ["ˈ", "O", "."]
    with pytest.raises(MmspecError, match="there is nothing to say: 'h', 'ˈ', 'I' cannot be said by an English voice"):
        Phonemizer(alphabet=". ").read("Hi.")


@pytest.mark.parametrize("text", ["", " \n\t\r ", "...", "?! — “”", "\x00\u200b\ufeff", "***\n\n---", "()[]{}"])
def test_nothing_to_say(reader: Phonemizer, text: str) -> None:
    """A text without a word is refused."""
    with pytest.raises(
        MmspecError, match="there is nothing to say: the text has no letter and no digit; give English words"
    ):
        reader.read(text)


@pytest.mark.parametrize(
    ("text", "names"), [("😀", "'😀'"), ("日本 😀.", "'日', '本', '😀'"), ("Привет", "'П', 'р', 'и', 'в', 'е', 'т'")]
)
def test_nothing_that_can_be_said(reader: Phonemizer, text: str, names: str) -> None:
    """A text of which nothing can be said is refused, without a warning before."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            MmspecError,
            match=f"there is nothing to say: {names} cannot be said by an English voice; give English words",
        ):
            reader.read(text)


def test_surrogates(reader: Phonemizer) -> None:
    """Bytes that the terminal could not decode are refused as in a picture's prompt."""
    with pytest.raises(MmspecError, match="the text is not valid UTF-8: check the terminal's encoding"):
        reader.read("caf\udce9")


def test_longest() -> None:
    """A limit under which no word fits is refused."""
    with pytest.raises(MmspecError, match="longest=39 phonemes is too few for a sentence: give 40 or more"):
        Phonemizer(longest=39)


def test_missing_hibari(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error says how to install it."""
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(MmspecError, match=r"reading text needs hibari: pip install 'mmspec\[speech\]'"):
        Phonemizer()


def test_import_is_free() -> None:
    """Neither hibari nor onnxruntime is loaded before a Reader is made."""
    code = (
        "import sys, mmspec.pipelines.phonemize; "
        "print([name for name in ('hibari', 'onnxruntime', 'numpy', 'torch') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
