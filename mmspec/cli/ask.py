"""`mmspec ask`."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from mmspec.cli.answers import Answerer, AnswerFlags
from mmspec.cli.common import Switch, say, summary


@dataclass(kw_only=True)
class Ask(AnswerFlags):
    """Ask a question about a picture; the answer goes to standard output.

    Example: mmspec ask photo.png "How many hearts are there?"
    """

    image: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PICTURE")]
    """A picture: a path, an http(s) URL, or - for standard input."""
    question: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="QUESTION", help_behavior_hint="")]
    """What to ask, in quotes or not."""
    stream: Switch = False
    """Write words as they are verified; in a terminal, what came in one round has one colour."""
    json: Switch = False
    """Answer, seed and statistics as one line of JSON."""

    def run(self) -> int:
        from mmspec.pipelines.chats import as_chats

        self.check()
        question = " ".join(self.question)
        chat = as_chats(self.image, question)[0]
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
