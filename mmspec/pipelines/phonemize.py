"""From text to what a speech model reads: sentences, their phonemes and the silence between them.

    reading = Phonemizer().read("Dr. Smith paid $5.20. It rained.")
    [sentence.phonemes for sentence in reading.sentences]

American English, by hibari's port of misaki; `[hibari](/hibˈɑɹi/)` in the text sets the phonemes of a word.
"""

import json
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from mmspec.errors import MmspecError
from mmspec.pipelines.normalize import ABBREVIATIONS, Normalizer
from mmspec.pipelines.units import CURRENCY, SHORTENED, SPOKEN_SIGNS

# Seconds of silence after a paragraph, a sentence, and a clause or a word at which a long sentence was cut.
PARAGRAPH, SENTENCE, CLAUSE, WORD = 0.7, 0.35, 0.15, 0.0
SILENT = frozenset(' ;:,.!?—…"()“”ˈˌː')
INLINE = re.compile(r"(\[[^\[\]\n]{1,80}\]\(/[^()\n]{1,200}/\))")
CLAUSE_END = re.compile(r"(?<=[,;:—–])\s+|(?<=[—–])(?=\w)")
WORD_END = re.compile(r"\s+")
LONG_NUMBER = re.compile(r"\d[\d,]{14,}\d")
# hibari takes the cube of the parts of a word
LONG_WORD = re.compile(r"(?:(?>\d+|[A-Z]?[^\W\dA-Z_]+|[A-Z]+|[_-]+|[^\w\s]){16}|\S{60})(?=\S)")
# Characters that have no letter or digit of their own to fall back on, and how they are written for `normalize`.
WRITTEN: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?<=\d) ?(?=[¼½¾⅐-⅞])"), " and "),
    (re.compile(r"(?<=\d)(?:[⁰¹²³⁴-⁹⁻]{2,}|[⁰⁴-⁹])"), lambda match: "^" + unicodedata.normalize("NFKC", match[0])),
    (re.compile(r"(?<=\d)[\u00a0\u202f](?=\d{3}(?!\d))"), ","),  # 5 000
    (
        re.compile(r"(?<=[A-Za-z₀-₉)])([¹²³⁴-⁹]?)([⁺⁻])(?!\w)"),
        lambda match: "^" + unicodedata.normalize("NFKC", match[0]).replace("−", "-"),
    ),
    (re.compile(r"(?<=[A-Za-z])[·∙⋅](?=[A-Za-z])"), ""),  # N·m
    (re.compile(r"(?<=[\w)])ⁿ"), "^n"),
    (re.compile(r"(?<=\d) ?[·∙⋅] ?(?=\d)"), " × "),
    (re.compile(r"(?<=\d)( ?[kM]?)Ω"), r"\1ohm"),
    (re.compile(r"μ(?=[gmslLAVWFJ]\b)"), "µ"),
    (re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+(.*?\S)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE), r"\1"),  # Markdown's titles
    (re.compile(r"^[ \t]{0,3}>[ \t]+(?=[^\d\s])", re.MULTILINE), ""),  # and quotations
)
SCHEME = re.compile(r"\w+://|mailto:")
SIGNS = {".": " dot ", "@": " at ", "/": " slash ", "-": " dash ", "_": " underscore ", ":": " colon ", "www": "w w w"}
INITIALS = re.compile(r"(?:[A-Za-z]\.){2,}")
RUNS_ON = {"A.D.", "e.g.", "i.e.", "vs.", "cf.", "approx."}
QUOTES = {'"', "“", "”"}
MARKS = dict.fromkeys(QUOTES, "''") | dict.fromkeys("([{", "-LRB-") | dict.fromkeys(")]}", "-RRB-") | {"`": ","}
MARK_TAGS = {".", ",", "-LRB-", "-RRB-", "``", '""', "''", ":"}
NUMERAL = re.compile(r"\(?(?:\d|(?:[IVXL]{2,}|[VX])\b)")
NO_PHONEMES = str.maketrans("ʀ", "ɹ", "1-()")  # which the net also gives
ALIKE = str.maketrans(
    {
        "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "№": "No. ", "º": "°", "′": "'", "″": '"', "‒": "–",
        "﹣": "-", "－": "-", "﹘": "—", "―": "—", "〜": "~", "～": "~", "\u200b": " ",
        "\u2028": "\n", "\u2029": "\n\n",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sentence:
    """What is said in one go; `pause` is the silence after it in seconds, none after the last."""

    text: str
    phonemes: str
    pause: float


@dataclass(frozen=True, slots=True)
class PhonemizedText:
    """`unsaid`: characters that were left out, in order, each once."""

    sentences: list[Sentence]
    unsaid: list[str]


class Phonemizer:
    """Reads with the phonemes of `alphabet` (hibari's own if left out), at most `longest` of them in a sentence."""

    def __init__(self, alphabet: Collection[str] | None = None, longest: int = 180) -> None:
        try:
            from hibari import Hibari
            from hibari.g2p import ASSETS, G2P
            from hibari.g2p.normalize import ABBREV, CURRENCY_WORDS, SYMBOLS
            from hibari.g2p.oov import OOV
            from hibari.g2p.tokenize import URL
        except ModuleNotFoundError as error:
            raise MmspecError(f"reading text needs {error.name}: pip install 'mmspec[speech]'") from None
        if longest < 40:
            raise MmspecError(f"longest={longest} phonemes is too few for a sentence: give 40 or more")
        self.longest = longest
        self.alphabet = frozenset(
            json.loads(Path(ASSETS, "vocab.json").read_text("utf-8")) if alphabet is None else alphabet
        )
        self.split = Hibari.split_sentences
        self.g2p = G2P(oov=self.spell)
        self.tagger, self.g2p.tagger = self.g2p.tagger, self.tags
        self.phonemes = lru_cache(256)(self.g2p)
        self.letters = OOV()
        self.url = URL
        self.normalize = lru_cache(256)(Normalizer(self.tagger))
        self.abbreviations = {
            "no.",
            "nos.",
            *map(str.lower, ABBREV),
            *(f"{word}." for word in [*ABBREVIATIONS, *SHORTENED, "rs"]),
        }
        # hibari expects that a letter lowers to one letter, which İ does not.
        latin = {c for c in self.letters.cin if unicodedata.name(c, "").startswith("LATIN") and len(c.lower()) == 1}
        signs = "".join([*SYMBOLS, *CURRENCY_WORDS, *CURRENCY, *SPOKEN_SIGNS])
        marks = {*map(chr, range(32, 127)), *"\n‘’“”«»…—–£€", *signs}
        self.readable = frozenset(latin | marks)

    def read(self, text: str) -> PhonemizedText:
        """Sentences with something to say in each; warns of what cannot be said, refuses a text in which
        nothing can.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise MmspecError("the text is not valid UTF-8: check the terminal's encoding") from None
        unsaid: dict[str, None] = {}
        sentences: list[Sentence] = []
        for lines in paragraphs(self.clean(text, unsaid)):
            whole = [sentence for line in lines for sentence in self.sentences(line)]
            for piece in (piece for sentence in whole for piece in self.pieces(sentence, unsaid)):
                if SILENT.issuperset(piece.phonemes):
                    sentences[-1:] = [replace(last, pause=max(last.pause, piece.pause)) for last in sentences[-1:]]
                else:
                    sentences.append(piece)
            sentences[-1:] = [replace(last, pause=PARAGRAPH) for last in sentences[-1:]]
        if not sentences:
            why = (
                f"{named(unsaid)} cannot be said by an English voice"
                if unsaid
                else "the text has no letter and no digit"
            )
            raise MmspecError(f"there is nothing to say: {why}; give English words")
        if unsaid:
            warnings.warn(f"left out what cannot be said: {named(unsaid)}", stacklevel=1)
        return PhonemizedText([*sentences[:-1], replace(sentences[-1], pause=0.0)], list(unsaid))

    def clean(self, text: str, unsaid: dict[str, None]) -> str:
        """Only what hibari reads: like characters folded, marks and format characters dropped, the rest added to
        `unsaid`.
        """
        parts = INLINE.split(
            unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").translate(ALIKE))
        )
        for i in range(0, len(parts), 2):
            for pattern, instead in WRITTEN:
                parts[i] = pattern.sub(instead, parts[i])
            folded = [(c, self.fold(c)) for c in re.sub(r"\S+", self.address, parts[i])]
            unsaid.update((c, None) for c, plain in folded if plain is None)
            parts[i] = LONG_NUMBER.sub(digits, "".join(" " if plain is None else plain for _, plain in folded))
            parts[i] = LONG_WORD.sub(r"\g<0> ", parts[i])
        return "".join(parts)

    def address(self, match: re.Match[str]) -> str:
        """A web or mail address in words, without its scheme; anything else as it is."""
        core = match[0].strip(".,;:!?()<>[]\"'“”‘’")
        if not self.url.match(core):
            return match[0]
        words = re.sub(r"www|[.@/_:-]", lambda sign: SIGNS[sign[0]], SCHEME.sub("", core).strip("/"))
        return match[0].replace(core, words)

    def fold(self, character: str) -> str | None:
        """The character itself, what stands for it, or None if it would have to be said and cannot be."""
        if character in self.readable:
            return character
        if character.isdecimal():
            return str(unicodedata.decimal(character))
        kind = unicodedata.category(character)
        if kind == "Cf" or kind[0] == "M":
            return ""
        if kind == "Cc" or kind[0] in "ZP":
            plain = unicodedata.normalize("NFKC", character).translate(ALIKE)
            return plain if self.readable.issuperset(plain) else " "
        parts = unicodedata.normalize("NFKD", character)
        plain = "".join(c for c in parts if not unicodedata.combining(c)).translate(ALIKE)
        if kind[0] == "S" and (plain != parts.translate(ALIKE) or not plain.strip()):
            return None  # ≢ without its stroke would be ≡
        return plain if plain and self.readable.issuperset(plain) else None

    def sentences(self, line: str) -> list[str]:
        """hibari's sentences, with their closing quotes, not cut after an abbreviation that runs on: "No. 5", "the U.S.
        Army".
        """
        starts, at = [], 0
        for sentence in self.split(line):
            starts.append(line.index(sentence, at))
            at = starts[-1] + len(sentence)
        whole: list[str] = []
        for sentence in (line[start:end].strip() for start, end in pairwise([*starts, len(line)])):
            if whole and self.runs_on(whole[-1], sentence):
                whole[-1] += " " + sentence
            else:
                whole.append(sentence)
        return whole

    def runs_on(self, before: str, after: str) -> bool:
        """`before` ends in an abbreviation and `after` goes on with its number or its name."""
        last, following = before.split()[-1].lstrip("(\"“'‘"), after.split(maxsplit=1)[0]
        if INITIALS.fullmatch(last) and last not in RUNS_ON:
            return self.tagger([last, following])[1].startswith("NNP")
        return last in RUNS_ON or bool(last.lower() in self.abbreviations and NUMERAL.match(following))

    def pieces(self, text: str, unsaid: dict[str, None], pause: float = SENTENCE) -> list[Sentence]:
        """The text, or its parts if it has too many phonemes: cut near its middle at a clause, else at a word, else
        anywhere.
        """
        phonemes = self.sound(text, unsaid, pause) if self.short(text) else None
        if phonemes is not None and len(phonemes) <= self.longest:
            return [Sentence(text, phonemes, pause)]
        inside = [range(match.start() + 1, match.end()) for match in INLINE.finditer(text)]
        for ends, between, margin in ((CLAUSE_END, CLAUSE, len(text) // 6), (WORD_END, WORD, 0)):
            cuts = [match.end() for match in ends.finditer(text, margin, len(text) - margin)]
            cuts = [cut for cut in cuts if not any(cut in span for span in inside)]
            if cuts:
                nearest = sorted(cuts, key=lambda cut: abs(2 * cut - len(text)))
                at = next((cut for cut in nearest[:8] if self.separate(text, cut)), nearest[0])
                return [*self.pieces(text[:at].rstrip(), unsaid, between), *self.pieces(text[at:], unsaid, pause)]
        if len(text) > 3 * self.longest:
            at = len(text) // 2
            return [*self.pieces(text[:at], unsaid, WORD), *self.pieces(text[at:], unsaid, pause)]
        phonemes = self.sound(text, unsaid, pause) if phonemes is None else phonemes
        *first, last = textwrap.wrap(phonemes, self.longest, break_on_hyphens=False)
        return [*(Sentence(text, part, WORD) for part in first), Sentence(text, last, pause)]

    def short(self, text: str) -> bool:
        """Whether a text may be short enough for one sentence, so that finding its phonemes is worth the time."""
        return len(text) <= 3 * self.longest and len(self.spoken(text)) <= 4 * self.longest

    def sound(self, text: str, unsaid: dict[str, None], pause: float) -> str:
        """The phonemes of a text that the alphabet has; the rest goes to `unsaid`."""
        phonemes = self.phonemes(self.spoken(text))
        if (
            pause == SENTENCE and text.endswith(".") and not phonemes.endswith((*SILENT,))
        ):  # lost after "U.S." and "p.m."
            phonemes += "."
        unsaid.update((c, None) for c in phonemes if c not in self.alphabet)
        return WORD_END.sub(" ", "".join(c for c in phonemes if c in self.alphabet)).strip()

    def separate(self, text: str, cut: int) -> bool:
        """Whether both sides of the cut are read as they are together, unlike those of "5 | km"."""
        left, right = text[max(0, cut - 40) : cut].rstrip(), text[cut : cut + 40]
        return self.spoken(f"{left} {right}") == f"{self.spoken(left)} {self.spoken(right)}"

    def spoken(self, text: str) -> str:
        """The sentence in words, apart from the phonemes that it gives."""
        parts = INLINE.split(text)
        parts[::2] = [self.normalize(part) for part in parts[::2]]
        return "".join(parts)

    def tags(self, words: Sequence[str]) -> list[str]:
        """Parts of speech; quotation marks and brackets are marks even where the tagger takes them for words, as hibari
        would spell what stands beside them.
        """
        opened = False
        tags = self.tagger(words)
        for i, word in enumerate(words):
            if word in QUOTES:
                opened = word == "“" or (word == '"' and not opened)
            if word in MARKS and tags[i] not in MARK_TAGS:
                tags[i] = "``" if word in QUOTES and opened else MARKS[word]
        return tags

    def spell(self, word: str) -> str:
        """Phonemes of a word that no lexicon has; hibari's net reads its first letters only, so a longer one goes in
        equal parts.
        """
        count = -(-len(word) // self.letters.maxlen)
        size = -(-len(word) // count)
        return "".join(self.letters(word[at : at + size]) or "" for at in range(0, len(word), size)).translate(
            NO_PHONEMES
        )


def paragraphs(text: str) -> Iterable[list[str]]:
    """Lines of each block between blank lines; a line that was wrapped, as the next word did not fit, is joined to the
    next.
    """
    for block in re.split(r"\n\s*\n", text):
        lines = [" ".join(line.split()) for line in block.split("\n") if line.strip()]
        width = max(map(len, lines), default=0)
        joined = lines[:1]
        for before, line in pairwise(lines):
            if len(before) + 1 + len(line.split()[0]) > max(width, 40):
                joined[-1] += " " + line
            else:
                joined.append(line)
        if joined:
            yield joined


def digits(number: re.Match[str]) -> str:
    """A number too long for its name is read digit by digit."""
    plain = number[0].replace(",", "")
    return number[0] if "," in number[0] and len(plain) <= 18 else " ".join(plain)


def named(characters: Iterable[str], most: int = 12) -> str:
    """`'é', 'ß' and 3 more`."""
    every = [repr(character) for character in characters]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
