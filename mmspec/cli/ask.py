"""`mmspec ask` and `mmspec chat`."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.style import Style

from mmspec.cli.common import console, quiet_libraries, torch_device, torch_dtype
from mmspec.errors import MmspecError


@dataclass(kw_only=True)
class Manner:
    """How to answer."""

    max_new_tokens: int | None = None
    """What the model's index says if left out, else 256."""
    seed: int | None = None
    """Same seed, same answer, whatever the drafter. Question i of a talk has seed + i. Random if left out, and printed."""
    temperature: float | None = None
    """0 is greedy. What the model's index says if left out, else 0; a generation_config.json is not asked."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens that sum to p."""
    repetition_penalty: float = 1.0
    """Divide the scores of tokens that were said before; 1 is none."""
    drafter: str | None = None
    """none, lookup, jacobi, or one that the model has weights for. Changes the speed, never the answer."""
    acceptance: str = "exact"
    """exact and rejection are lossless; tolerance:N and typical are lossy, and said to be so."""
    model: str = "magpie-135"
    """A bundled name, a folder, or a hub id such as llava-hf/llava-1.5-7b-hf."""
    device: str = "auto"
    dtype: str = "bf16"
    quiet: bool = False
    """Nothing but answers."""


@dataclass(kw_only=True)
class Ask(Manner):
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
        from mmspec.pipelines.image_text_to_text import chats

        question = " ".join(self.question)
        chat = chats(self.image, question)[0]
        talk = Talk(self)
        answer = talk.answer(chat)
        if self.json:
            print(json.dumps({"question": question, "answer": answer.text} | talk.facts(answer)))
        elif not self.stream:
            print(answer.text)
        if not self.quiet and not self.json:
            talk.report(answer)
        return 0


@dataclass(kw_only=True)
class Chat(Manner):
    """Talk about a picture, question after question; an empty line or Ctrl-D ends it.

    Example: mmspec chat photo.png
    """

    image: tyro.conf.Positional[str | None] = None
    """A picture: a path or an http(s) URL; none for a talk without one."""

    def run(self) -> int:
        from mmspec.media.image import read

        if self.image == "-":
            raise MmspecError(
                "a chat reads its questions from standard input, so the picture must be a file or a URL; `mmspec ask -` takes one from a pipe"
            )
        chat: list[dict] = []
        pictures = [{"type": "image", "image": read(self.image)}] if self.image else []
        talk = Talk(self)
        number = 0
        while question := talk.prompt():
            chat = [
                *chat,
                {"role": "user", "content": [*([] if chat else pictures), {"type": "text", "text": question}]},
            ]
            answer = talk.answer(chat, number)
            chat, number = answer.chat(), number + 1
            if not self.quiet:
                talk.report(answer)
        return 0


class Talk:
    """What `ask` and `chat` share: the model, answers as they come, and what they cost."""

    COLOURS = ("cyan", "green")

    def __init__(self, command: "Ask | Chat"):
        from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

        quiet_libraries()
        self.command = command
        place = torch_device(command.device)
        self.pipe = ImageTextToTextPipeline.from_pretrained(command.model, torch_dtype=torch_dtype(command.dtype)).to(
            place
        )

    def prompt(self) -> str:
        """The next question; empty at the end."""
        try:
            return (input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
        except EOFError:
            return ""
        except UnicodeDecodeError:
            raise MmspecError("the question is not valid UTF-8: check the terminal's encoding") from None

    def answer(self, chat: list[dict], number: int = 0):
        """Ask, and print words as they are verified if that is wanted: what came in one round has one colour."""
        command, out = self.command, Console()
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "drafter", "acceptance")
        law = {name: getattr(command, name) for name in names}
        streams = not isinstance(command, Ask) or (command.stream and not command.json)
        tints = out.color_system and not out.no_color
        seed = None if command.seed is None else command.seed + number
        for step, words in enumerate(self.pipe.stream(chat, seed=seed, **law)):
            if streams:  # not by rich's print, which expands tabs and draws :heart: as a heart
                tinted = Style(color=self.COLOURS[step % 2]).render(words.texts[0]) if tints else words.texts[0]
                print(tinted, end="", flush=True)
        if streams:
            print()
        return words.output

    def facts(self, answer) -> dict:
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

    def report(self, answer) -> None:
        """One line about what it cost."""
        stats = answer.stats
        kept = "lossless" if stats.lossless else "NOT lossless"
        console.print(
            f"{stats.tokens} tokens in {stats.total:.2f} s, first after {answer.first_token:.2f} s, {stats.tokens_per_second:.0f} tokens/s, "
            f"mean acceptance length {stats.mean_acceptance_length:.2f}, {stats.drafter}, {stats.acceptance} ({kept}), seed {answer.seeds[0]}",
            highlight=False,
            soft_wrap=True,
        )
