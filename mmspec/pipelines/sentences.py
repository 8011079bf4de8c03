"""Text in any language in pieces that a speech language model says in one go."""

import re
import unicodedata

from mmspec.errors import MmspecError
from mmspec.pipelines.phonemize import CLAUSE, PARAGRAPH, SENTENCE, WORD, PhonemizedText, Sentence, paragraphs

# Where a text may be cut, best first, and the pause there in seconds.
CUTS = (
    (re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])[」』”]*"), SENTENCE),
    (re.compile(r"(?<=[,;:—–])\s+|(?<=[，、；：])"), CLAUSE),
    (re.compile(r"\s+"), WORD),
)


def read_plainly(text: str, longest: int) -> PhonemizedText:
    """Pieces of at most `longest` bytes, of whole sentences where they fit; the model reads them as they are.

    The last has no pause after it. Raises MmspecError for a text without a letter or a digit.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise MmspecError("the text is not valid UTF-8: check the terminal's encoding")
    pieces: list[Sentence] = []
    for lines in paragraphs(text):
        said = [Sentence(piece, piece, pause) for piece, pause in cut(" ".join(lines), longest) if speakable(piece)]
        pieces += said[:-1]
        pieces += [Sentence(last.text, last.phonemes, PARAGRAPH) for last in said[-1:]]
    if not pieces:
        raise MmspecError("there is nothing to say: the text has no letter and no digit")
    return PhonemizedText([*pieces[:-1], Sentence(pieces[-1].text, pieces[-1].phonemes, 0.0)], [])


def speakable(text: str) -> bool:
    """Whether a text has a letter, a digit or a sign that is a word."""
    return any(unicodedata.category(character)[0] in "LNS" for character in text)


def cut(text: str, longest: int, pause: float = SENTENCE) -> list[tuple[str, float]]:
    """Parts of at most `longest` bytes and the pause after each: about equally long, and cut where it is best."""
    size = len(text.encode())
    if size <= longest:
        return [(text, pause)]
    fair = size / -(-size // longest)
    for pattern, between in CUTS:
        ends = (match.end() for match in pattern.finditer(text))
        sizes = {end: len(text[:end].rstrip().encode()) for end in ends if 0 < end < len(text)}
        fitting = [end for end, bytes_before in sizes.items() if bytes_before <= longest]
        if fitting:
            at = min(fitting, key=lambda end: abs(sizes[end] - fair))
            return [(text[:at].rstrip(), between), *cut(text[at:].lstrip(), longest, pause)]
    at = max(1, len(text.encode()[:longest].decode(errors="ignore")))
    return [(text[:at], WORD), *cut(text[at:], longest, pause)]
