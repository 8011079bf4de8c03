"""What `ask` and `chat` share: options, the model, and answers that are shown as they come."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.style import Style

from mmspec.cli.common import (
    Model,
    ModelFlags,
    SamplingFlags,
    Switch,
    Whole,
    check_model,
    loading,
    quiet_libraries,
    torch_device,
    torch_dtype,
)
from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
    from mmspec.pipelines.outputs import ImageTextToTextOutput

COLOURS = ("cyan", "green")


class Stopped(MmspecError):
    """An answer that was stopped before its first word."""


@dataclass(kw_only=True)
class AnswerFlags(SamplingFlags, ModelFlags):
    """How to answer. Question i of a chat has seed + i."""

    max_new_tokens: Whole = None
    """What the model's index says if left out, else 256."""
    model: Model = "magpie-135"
    """A bundled name, a folder, or a hub id such as llava-hf/llava-1.5-7b-hf; a language model chats without
    pictures."""
    device_map: Annotated[str | None, tyro.conf.arg(metavar="MAP", help_behavior_hint="")] = None
    """How transformers spreads the model over several devices, such as auto; --device is then ignored."""
    trust_remote_code: Switch = False
    """Let Python code run that comes with the model."""

    def check(self) -> Path:
        """The model's folder. Raises MmspecError for what cannot work, before anything is loaded."""
        from mmspec.pipelines.request import check_count

        self.check_sampling()
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)
        return check_model(
            self.model, "image-text-to-text", self.drafter, self.dtype, self.device, self.trust_remote_code
        )


class Answerer:
    """The model of a command, and answers that are printed as they are verified if that is wanted."""

    def __init__(self, command: AnswerFlags):
        self.command = command
        with loading(command.model, command.quiet):
            self.pipe = self._load()

    def _load(self) -> "ImageTextToTextPipeline":
        from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

        quiet_libraries()
        command = self.command
        device = torch_device(command.device)
        loading = {"device_map": command.device_map} if command.device_map else {}
        pipe = ImageTextToTextPipeline.from_pretrained(
            command.model,
            torch_dtype=torch_dtype(command.dtype),
            trust_remote_code=command.trust_remote_code,
            **loading,
        )
        if not pipe.placed:
            pipe.to(device)
        pipe.deterministic, pipe.compiled = command.deterministic, command.compile
        return pipe

    def answer(self, chat: list[dict], seed: int | None, shown: bool) -> "ImageTextToTextOutput":
        """Answer the last message of a chat; what came in one round has one colour in a terminal."""
        terminal = Console()
        coloured = terminal.color_system and not terminal.no_color
        options = self.command.sampling_kwargs | {"max_new_tokens": self.command.max_new_tokens}
        output = None
        for step, chunk in enumerate(self.pipe.stream(chat, seed=seed, **options)):
            output = chunk.output
            if shown:  # not by rich's print, which expands tabs and draws :heart: as a heart
                text = chunk.texts[0]
                print(Style(color=COLOURS[step % 2]).render(text) if coloured else text, end="", flush=True)
        if shown:
            print(flush=True)
        if output is None:
            raise Stopped("the answer was stopped before its first word: ask again")
        return output

    def facts(self, answer: "ImageTextToTextOutput") -> dict:
        """How an answer came about, as data."""
        stats = answer.stats
        return {
            "seed": answer.seeds[0],
            "ended": answer.ended[0],
            "drafter": stats.drafter,
            "acceptance": stats.acceptance,
            "lossless": stats.lossless,
            "chains_only": stats.chains_only,
            "tokens": stats.tokens,
            "mean_acceptance_length": round(stats.mean_acceptance_length, 3),
            "tokens_per_second": round(stats.tokens_per_second, 1),
            "seconds_to_first_token": round(answer.first_token, 3),
        }
