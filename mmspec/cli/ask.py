"""`mmspec ask` and `mmspec chat`."""

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.style import Style

from mmspec.cli.common import (
    ModelFlags,
    SamplingFlags,
    console,
    quiet_libraries,
    summary,
    torch_device,
    torch_dtype,
)
from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.pipelines.outputs import ImageTextToTextOutput


@dataclass(kw_only=True)
class AnswerFlags(SamplingFlags, ModelFlags):
    """How to answer. Question i of a chat has seed + i."""

    max_new_tokens: int | None = None
    """What the model's index says if left out, else 256."""
    model: str = "magpie-135"
    """A bundled name, a folder, or a hub id such as llava-hf/llava-1.5-7b-hf."""


@dataclass(kw_only=True)
class Ask(AnswerFlags):
    """Ask a question about a picture; the answer goes to standard output.

    Example: mmspec ask photo.png "How many hearts are there?"
    """

    image: tyro.conf.Positional[str]
    """A picture: a path, an http(s) URL, or - for standard input."""
    question: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="QUESTION")]
    """What to ask, in quotes or not."""
    stream: bool = False
    """Write words as they are verified; in a terminal, what came in one round has one colour."""
    json: bool = False
    """Answer, seed and statistics as one line of JSON."""

    def run(self) -> int:
        from mmspec.pipelines.chats import as_chats

        question = " ".join(self.question)
        chat = as_chats(self.image, question)[0]
        conversation = Conversation(self)
        answer = conversation.answer(chat)
        if self.json:
            print(json.dumps({"question": question, "answer": answer.text} | conversation.facts(answer)))
        elif not self.stream:
            print(answer.text)
        if not self.quiet and not self.json:
            conversation.report(answer)
        return 0


@dataclass(kw_only=True)
class Chat(AnswerFlags):
    """Chat about a picture, question after question; an empty line or Ctrl-D ends it.

    Example: mmspec chat photo.png
    """

    image: tyro.conf.Positional[str | None] = None
    """A picture: a path or an http(s) URL; none for a chat without one."""

    def run(self) -> int:
        from mmspec.media.image import read

        if self.image == "-":
            raise MmspecError(
                "a chat reads its questions from standard input, so the picture must be a file or a URL; "
                "`mmspec ask -` takes one from a pipe"
            )
        chat: list[dict] = []
        pictures = [{"type": "image", "image": read(self.image)}] if self.image else []
        conversation = Conversation(self)
        number = 0
        while question := conversation.prompt():
            chat = [
                *chat,
                {"role": "user", "content": [*([] if chat else pictures), {"type": "text", "text": question}]},
            ]
            answer = conversation.answer(chat, number)
            chat, number = answer.chat(), number + 1
            if not self.quiet:
                conversation.report(answer)
        return 0


class Conversation:
    """What `ask` and `chat` share: the model, answers as they come, and what they cost."""

    COLOURS = ("cyan", "green")

    def __init__(self, command: "Ask | Chat"):
        from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

        quiet_libraries()
        self.command = command
        pipe = ImageTextToTextPipeline.from_pretrained(command.model, torch_dtype=torch_dtype(command.dtype))
        self.pipe = pipe.to(torch_device(command.device))

    def prompt(self) -> str:
        """The next question; empty at the end."""
        try:
            return (input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
        except EOFError:
            return ""
        except UnicodeDecodeError:
            raise MmspecError("the question is not valid UTF-8: check the terminal's encoding") from None

    def answer(self, chat: list[dict], number: int = 0) -> "ImageTextToTextOutput":
        """Ask, and print text as it is verified if that is wanted: what came in one round has one colour."""
        command, terminal = self.command, Console()
        streams = not isinstance(command, Ask) or (command.stream and not command.json)
        coloured = terminal.color_system and not terminal.no_color
        seed = None if command.seed is None else command.seed + number
        options = command.sampling_kwargs | {"max_new_tokens": command.max_new_tokens}
        for step, chunk in enumerate(self.pipe.stream(chat, seed=seed, **options)):
            if streams:  # not by rich's print, which expands tabs and draws :heart: as a heart
                text = chunk.texts[0]
                print(Style(color=self.COLOURS[step % 2]).render(text) if coloured else text, end="", flush=True)
        if streams:
            print()
        return chunk.output

    def facts(self, answer: "ImageTextToTextOutput") -> dict:
        stats = answer.stats
        return {
            "seed": answer.seeds[0],
            "ended": answer.ended[0],
            "drafter": stats.drafter,
            "acceptance": stats.acceptance,
            "lossless": stats.lossless,
            "tokens": stats.tokens,
            "mean_acceptance_length": round(stats.mean_acceptance_length, 3),
            "tokens_per_second": round(stats.tokens_per_second, 1),
            "seconds_to_first_token": round(answer.first_token, 3),
        }

    def report(self, answer: "ImageTextToTextOutput") -> None:
        """One line about what it cost."""
        stats = answer.stats
        console.print(
            f"{stats.tokens} tokens in {stats.total:.2f} s, first after {answer.first_token:.2f} s, "
            f"{summary(stats, answer.seeds[0])}",
            highlight=False,
            soft_wrap=True,
        )
