"""How well text is read: `python -m recipes.wren_86.reading` prints, for this package and for other libraries, how many
sentences of reading.tsv (various), unseen.tsv (what a reviewer tried, see docs/LOG.md) and faults.tsv (once misread,
with the phonemes of commit ed27c1d) they read in one of the wordings beside them; then row by row how this package
reads the faults.

A library that is not installed is skipped. Nothing but this measurement needs them:

    pip install wetext num2words                            # 78 MB, 1 MB
    pip install nemo_text_processing                        # 1 GB
    pip install misaki spacy && spacy download en_core_web_sm
"""

import logging
import re
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import tyro

from mmspec.pipelines.phonemize import Phonemizer

TABLE, UNSEEN, FAULTS = (Path(__file__).with_name(f"{name}.tsv") for name in ("reading", "unseen", "faults"))
NUMBER = re.compile(r"(?P<sign>[$£€])?(?P<number>\d[\d,]*(?:\.\d+)?)(?P<ordinal>st|nd|rd|th)?\b")
CURRENCY = {"$": "USD", "£": "GBP", "€": "EUR"}

Reader = Callable[[str], str]


def rows(table: Path) -> list[tuple[str, list[str]]]:
    """Sentences, each with the spoken forms that are right; the faults' second column is what was said before."""
    lines = [line.split("\t") for line in table.read_text("utf-8").splitlines()]
    return [(line[0], line[2:] if table == FAULTS else line[1:]) for line in lines]


def before() -> dict[str, str]:
    """The phonemes that the faults had at commit ed27c1d."""
    lines = [line.split("\t") for line in FAULTS.read_text("utf-8").splitlines()]
    return {line[0]: line[1] for line in lines}


def sound(phonemes: str) -> str:
    """Phonemes without stress, punctuation, spaces and "and"; zero and "oh" are one word."""
    words = re.sub(r"[ˈˌː;:,.!?—…\"()“”]", " ", phonemes).replace("zɪɹO", "O").split()
    return "".join(word for word in words if word not in ("ænd", "ənd")).replace("T", "t")


def attempt(read: Reader, text: str) -> str:
    """The reading, or the error in its place: hibari alone fails on superscripts, wetext on 1.299,00."""
    try:
        return read(text)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def read_by_mmspec() -> Reader:
    """Sentences and phonemes as the speech pipeline has them."""
    phonemizer = Phonemizer()
    return lambda text: " ".join(sentence.phonemes for sentence in phonemizer.read(text).sentences)


@cache
def read_by_hibari() -> Callable[..., str]:
    """hibari's own reading of numbers, a port of misaki's."""
    from hibari.g2p import G2P

    return G2P()


def read_by_misaki() -> Reader:
    """misaki with spaCy's tagger and without espeak."""
    from misaki.en import G2P

    g2p = G2P(trf=False, british=False, fallback=None, unk="")
    return lambda text: g2p(text)[0]


def read_words(words_of: Reader) -> Reader:
    """Phonemes of the words that a library writes."""
    from hibari.g2p import G2P

    g2p = G2P()
    return lambda text: g2p(words_of(text))


def read_by_wetext() -> Reader:
    """WeTextProcessing's English grammars, compiled."""
    from wetext import Normalizer

    return read_words(Normalizer(lang="en").normalize)


def read_by_nemo() -> Reader:
    """NVIDIA's grammars, compiled at the first start."""
    from nemo_text_processing.text_normalization.normalize import Normalizer

    normalizer = Normalizer(input_case="cased", lang="en")
    return read_words(lambda text: normalizer.normalize(text, punct_post_process=True))


def read_by_num2words() -> Reader:
    """num2words behind a regular expression for numbers, money, years and ordinals."""
    from num2words import num2words

    def spell(match: re.Match[str]) -> str:
        plain = match["number"].replace(",", "")
        value = float(plain) if "." in plain else int(plain)
        if match["sign"]:
            return num2words(float(plain), to="currency", currency=CURRENCY[match["sign"]])
        if match["ordinal"]:
            return num2words(int(value), to="ordinal")
        return num2words(value, to="year" if re.fullmatch(r"1\d{3}|20\d\d", match["number"]) else "cardinal")

    return read_words(lambda text: NUMBER.sub(spell, text))


READERS: dict[str, Callable[[], Reader]] = {
    "mmspec": read_by_mmspec,
    "hibari": read_by_hibari,
    "misaki": read_by_misaki,
    "wetext": read_by_wetext,
    "nemo_text_processing": read_by_nemo,
    "num2words": read_by_num2words,
}


def right(phonemes: str, spoken: list[str]) -> bool:
    """Whether the phonemes are those of one of the wordings."""
    g2p = read_by_hibari()
    return sound(phonemes) in {sound(g2p(words, normalize_text=False)) for words in spoken}


def score(name: str, read: Reader, table: Path, show: bool) -> str:
    """How many sentences of a table a reader has right; `show` prints those that it has not."""
    start, wrong, wanted = time.perf_counter(), [], rows(table)
    for text, spoken in wanted:
        phonemes = attempt(read, text)
        if not right(phonemes, spoken):
            wrong.append(f"  {name}: {text}  ->  {phonemes}")
    took = 1000 * (time.perf_counter() - start) / len(wanted)
    if show:
        print("\n".join(wrong))
    return f"{len(wanted) - len(wrong):3} of {len(wanted)} of {table.name} ({took:.1f} ms each)"


def faults() -> None:
    """Print each fault: whether it is read rightly now, its text, the right words, and the phonemes before and now."""
    read, said = read_by_mmspec(), before()
    for text, spoken in rows(FAULTS):
        phonemes = attempt(read, text)
        print("right" if right(phonemes, spoken) else "WRONG", text, spoken[0], said[text], phonemes, sep=" | ")


def main(show: str | None = None, table: Path = TABLE) -> None:
    """Score every reader on all tables, print the faults row by row, and list what the one called `show` misreads."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    for name, make in READERS.items():
        start = time.perf_counter()
        try:
            read = make()
            read("Warm up.")
        except (ImportError, OSError) as error:
            print(f"{name:22} skipped: {error}")
            continue
        loaded = time.perf_counter() - start
        scores = [score(name, read, path, name == show) for path in (table, UNSEEN, FAULTS)]
        print(f"{name:22} {', '.join(scores)}, starts in {loaded:.1f} s")
    print("\nnow | text | right words | phonemes at ed27c1d | phonemes now")
    faults()


if __name__ == "__main__":
    tyro.cli(main)
