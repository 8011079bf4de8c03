"""`mmspec ask`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmspec.cli.answers import Answerer, AnswerFlags
from mmspec.cli.common import Switch, say, summary

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")


@dataclass(kw_only=True)
class Ask(AnswerFlags):
    """Ask a question about pictures, or about none; the answer goes to standard output.

    Example: mmspec ask photo.png "How many hearts are there?"
    """

    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PICTURE ...] QUESTION", help_behavior_hint="")
    ]
    """Pictures, each a path, an http(s) URL, or - for standard input, then what to ask, in quotes or not."""
    stream: Switch = False
    """Write words as they are verified; in a terminal, what came in one round has one colour."""
    json: Switch = False
    """Answer, seed and statistics as one line of JSON."""

    def run(self) -> int:
        from mmspec.pipelines import reads_pictures
        from mmspec.pipelines.chats import as_chats

        pictures, question = self.split(reads_pictures(self.check()))
        chat = as_chats(pictures, question)[0]
        answerer = Answerer(self)
        answer = answerer.answer(chat, self.seed, shown=self.stream and not self.json)
        if self.json:
            print(json.dumps({"question": question, "answer": answer.text} | answerer.facts(answer)))
        elif not self.stream:
            print(answer.text, flush=True)  # before the statistics, wherever either goes
        if not self.quiet and not self.json:
            stats = answer.stats
            say(
                f"{stats.tokens} tokens in {stats.total:.2f} s, first after {answer.first_token:.2f} s, "
                f"{summary(stats, answer.seeds[0])}"
            )
        return 0

    def split(self, reads_pictures: bool) -> tuple[list[str], str]:
        """The words as pictures and the question.

        Pictures are all that stand before it and look so (`is_picture`). The first of several words is one for every
        model that reads pictures, so that a missing file is an error.
        """
        words = list(self.words)
        count = next((i for i, word in enumerate(words) if not is_picture(word)), len(words))
        count = max(count, int(reads_pictures and len(words) > 1))
        return words[:count], " ".join(words[count:])


def is_picture(word: str) -> bool:
    """Whether a word of the command line names a picture: standard input, a URL, or a file, by its name or in fact."""
    if word == "-" or word.startswith(("http://", "https://", "data:")):
        return True
    try:
        path = Path(word).expanduser()
        return path.suffix.lower() in SUFFIXES or path.is_file()
    except (OSError, RuntimeError):  # a name that is too long, or a home of nobody's
        return False
