"""`mmspec chat`."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from mmspec.cli.answers import Answerer, AnswerFlags, Stopped
from mmspec.cli.common import drafter_of, say
from mmspec.errors import MmspecError, unknown

if TYPE_CHECKING:
    from types import FrameType

    from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

HELP = """\
/image FILE  show a picture with the next question
/clear       forget what was said; the pictures stay
/seed N      answer the next question with seed N, and count up from there
/help        this list
/exit, /quit  end the chat, as Ctrl-D does
Ctrl-C stops an answer; at the prompt, twice ends the chat."""
COMMANDS = ("/image", "/clear", "/seed", "/help", "/exit", "/quit")


@dataclass(kw_only=True)
class Chat(AnswerFlags):
    """Chat about a picture, question after question; /help lists what else to type.

    Example: mmspec chat photo.png
    """

    image: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PICTURE", help_behavior_hint="")] = None
    """A picture: a path or an http(s) URL; none for a chat without one."""

    def run(self) -> int:
        self.check()
        if self.image == "-":
            raise MmspecError(
                "a chat reads its questions from standard input, so the picture must be a file or a URL; "
                "`mmspec ask -` takes one from a pipe"
            )
        talk = Talk(self)
        if self.image:
            talk.show_picture(self.image)
        talk.answerer = Answerer(self)
        if sys.stdin.isatty():
            with suppress(ImportError):
                import readline  # noqa: F401 - gives input() line editing and a history
            if not self.quiet:
                say(f"{self.model} is ready{' and sees ' + self.image if self.image else ''}. /help lists commands.")
        for line in questions():
            if line in ("/exit", "/quit"):
                break
            try:
                talk.hear(line)
            except MmspecError as error:
                say(f"[{error}]" if isinstance(error, Stopped) else f"mmspec: error: {error}")
        return 0


@dataclass
class Talk:
    """What was said, the pictures that wait for a question, and the seed of the next one."""

    command: Chat
    answerer: Answerer = field(init=False)
    chat: list[dict] = field(default_factory=list)
    pictures: list[dict] = field(default_factory=list)
    waiting: list[dict] = field(default_factory=list)
    seed: int | None = None

    def __post_init__(self) -> None:
        self.seed = self.command.seed

    def hear(self, line: str) -> None:
        """A line that was typed: a command, or a question. Raises MmspecError if it cannot be done; the talk is as it
        was then.
        """
        name, _, rest = line.partition(" ")
        if not line.startswith("/"):
            self.ask(line)
        elif name == "/help":
            say(HELP)
        elif name == "/clear":
            self.chat, self.waiting = [], list(self.pictures)
            say("[the talk is forgotten; pictures come with the next question]" if self.waiting else "[forgotten]")
        elif name == "/image":
            if not rest.strip():
                raise MmspecError("/image needs a picture: give a path or a URL")
            self.show_picture(rest.strip())
            say(f"[{rest.strip()} comes with the next question]")
        elif name == "/seed":
            self.seed = read_seed(rest.strip())
            say(f"[seed {self.seed}]")
        else:
            raise unknown("command", name, COMMANDS)

    def show_picture(self, source: str) -> None:
        """Show a picture with the next question."""
        from mmspec.media.image import read

        if source == "-":
            raise MmspecError("questions come from standard input, so a picture must be a file or a URL")
        picture = {"type": "image", "image": read(source)}
        self.pictures.append(picture)
        self.waiting.append(picture)

    def ask(self, question: str) -> None:
        """Answer a question, and remember both."""
        message = {"role": "user", "content": [*self.waiting, {"type": "text", "text": question}]}
        with stopping(self.answerer.pipe):
            answer = self.answerer.answer([*self.chat, message], self.seed, shown=True)
        self.chat, self.waiting = answer.chat(), []
        self.seed = None if self.seed is None else self.seed + 1
        if not self.command.quiet:
            stats = answer.stats
            rule = "" if stats.lossless else f", {stats.acceptance} (NOT lossless)"
            say(
                f"[{stats.tokens} tokens, {stats.tokens_per_second:.0f} a second, "
                f"{stats.mean_acceptance_length:.1f} a round by {drafter_of(stats)}, seed {answer.seeds[0]}{rule}]"
            )


def read_seed(text: str) -> int:
    """A seed as it is typed."""
    from mmspec.pipelines.request import MAX_SEED

    if text.isdecimal() and len(text) <= len(str(MAX_SEED)) and int(text) <= MAX_SEED:
        return int(text)
    raise MmspecError(f"/seed {text[:40]}: give a whole number from 0 to {MAX_SEED}")


def questions() -> Iterator[str]:
    """The lines that are typed or piped in, without empty ones; Ctrl-C twice at the prompt ends the program."""
    interrupted = False
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else sys.stdin.buffer.readline().decode()
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted or not sys.stdin.isatty():
                raise
            interrupted = True
            say("\nCtrl-C again, Ctrl-D or /exit ends the chat.")
            continue
        except UnicodeDecodeError:
            say("mmspec: error: the question is not valid UTF-8: check the terminal's encoding")
            continue
        if not line and not sys.stdin.isatty():
            return
        interrupted = False
        if line.strip():
            yield line.strip()


@contextmanager
def stopping(pipe: "ImageTextToTextPipeline") -> Iterator[None]:
    """Let Ctrl-C end the present answer after its round, and keep what was said; pressed twice it interrupts."""

    def stop(number: int, frame: "FrameType | None") -> None:
        if pipe.interrupt:
            raise KeyboardInterrupt
        pipe.interrupt = True

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
