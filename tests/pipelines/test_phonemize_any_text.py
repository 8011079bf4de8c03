"""From text to phonemes: any text is read or refused, in a time that grows with its length alone."""

import time
import unicodedata
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmspec.errors import MmspecError
from mmspec.pipelines.phonemize import CLAUSE, PARAGRAPH, SENTENCE, SILENT, WORD, Phonemizer

pytest.importorskip("hibari")


@pytest.fixture(scope="module")
def reader() -> Phonemizer:
    return Phonemizer()


UNITS = ["[", "(", "a-", '."', "1,", "[a](/b", "a.", "a\n ", "😀", "é\u0301", "ab", " "]


@pytest.mark.slow
@pytest.mark.parametrize("unit", [*UNITS, "1-", "a1", "1x", "≤", "√", "://", "sq. "])
def test_time(reader: Phonemizer, unit: str) -> None:
    """No text of a few thousand characters takes long: the worst cost stays linear."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader.read("a " + unit * (4000 // len(unit)))
    assert time.perf_counter() - start < 20


WORDS = st.sampled_from(
    "the to used No. Dr. U.S. p.m. e.g. http:// www. x.com a@b.co 10 "
    "2024 1,000 3.14 1/2 10:30 $ £ € % # & @ * _ - — … ... ' '' \" “ ” ( ) [ ] "
    "[a](/b/) [a](b) ½ ⁵ ° km lbs st th "
    "'s 'd ing II XIV Chapter Henry Jan 5th million k ? . , ; : \\ | ^ ~ < = + 00 n't Sept. :) \n \n\n \r "
    "a.b.c A.B. aBC ß İ ŉ ﬁ ʃ ˈ 日 א ٣ ② Ⅳ ™ µ \u0301 \u200d \u00ad \x00 \u2028 😀".split(" ")
)
ANY = (
    st.text(max_size=120)
    | st.lists(WORDS | st.just(" "), max_size=40).map("".join)
    | st.text("0123456789.,-:/$%'st ", max_size=80)
)


@pytest.mark.slow
@given(text=ANY)
@settings(deadline=None, max_examples=400)
def test_any_text(reader: Phonemizer, text: str) -> None:
    """Any text is either refused or read: each sentence has a text and something to say, in the alphabet and not too
    long.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reading = reader.read(text)
        except MmspecError as error:
            assert "there is nothing to say" in str(error)
            return
    assert reading.sentences and len(set(reading.unsaid)) == len(reading.unsaid)
    assert set(reading.unsaid) <= set(unicodedata.normalize("NFC", text))
    for sentence in reading.sentences:
        assert sentence.text and not SILENT.issuperset(sentence.phonemes)
        assert reader.alphabet.issuperset(sentence.phonemes) and len(sentence.phonemes) <= reader.longest
        assert sentence.pause in (PARAGRAPH, SENTENCE, CLAUSE, WORD)
