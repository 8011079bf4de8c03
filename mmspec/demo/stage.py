"""What the tabs share: models that many visitors use at once, and each visitor's run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import gradio as gr
import torch

from mmspec import drafters
from mmspec.demo.plain import PlainTimer
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.pipelines import TASKS, pipeline
from mmspec.pipelines.base import Pipeline
from mmspec.pipelines.session import Session
from mmspec.serve.hosting import HostedModel, host

# Calls that may wait for a model.
WAITING = 64


@dataclass
class Player:
    """A model that is shown, the time of plain decoding beside its runs, and visitors' sessions."""

    model: HostedModel
    plain: PlainTimer = field(default_factory=PlainTimer)
    sessions: dict[str | None, Session] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def pipe(self) -> Pipeline:
        return self.model.pipe

    @property
    def drafters(self) -> list[str]:
        return drafters.usable(self.pipe.folder)

    @contextmanager
    def session(self, visitor: str | None) -> Iterator[Session]:
        """The pipeline for one visitor, until `stop(visitor)`. What is wrong is told in a message."""
        self.stop(visitor)
        session = self.sessions[visitor] = self.model.session()
        try:
            yield session
        except MmspecError as error:
            raise gr.Error(str(error), print_exception=False) from None
        finally:
            session.interrupt = True
            if self.sessions.get(visitor) is session:
                del self.sessions[visitor]

    def stop(self, visitor: str | None) -> None:
        """End what a visitor has running."""
        if visitor in self.sessions:
            self.sessions[visitor].interrupt = True

    def numbers(self, calls: list[GenerationStats]) -> str:
        """Speed, acceptance and comparison with plain decoding, of calls one after the other: one line of Markdown."""
        first = calls[0]
        if all(stats.tokens <= len(stats.runs) for stats in calls):
            return ""
        rate, plain = row_rate(calls), self.plain.rate(calls)
        tokens, rounds = sum(stats.tokens for stats in calls), sum(sum(map(len, stats.runs)) for stats in calls)
        compared = (
            f"**{rate / plain:.2f} ×** plain decoding, which would do {plain:.0f} tokens/s here now"
            if plain
            else "plain decoding is not timed yet"
        )
        same = "the same output as plain decoding" if first.lossless else "**not** the same output as plain decoding"
        rule = "exact" if first.lossless and first.acceptance.startswith("tolerance") else first.acceptance
        return (
            f"**{rate:.0f} tokens/s** · {tokens / max(1, rounds):.2f} tokens per round · {compared} · "
            f"drafter {first.drafter}, acceptance {rule}: {same}"
        )


def row_rate(calls: list[GenerationStats]) -> float:
    """Tokens per second of a row, without the first ones, which come with the prompt."""
    tokens = sum((stats.tokens - len(stats.runs)) / len(stats.runs) for stats in calls)
    return tokens / sum(stats.total - stats.prefill for stats in calls)


class Stage:
    """The models of a demo by task, `names` says which. `tell` is called with a line before each is loaded."""

    def __init__(
        self,
        names: dict[str, str],
        device: str | None = None,
        dtype: str | torch.dtype = "bf16",
        rows: int = 8,
        tell: Callable[[str], object] = lambda line: None,
        compiled: bool = False,
    ):
        self.players: dict[str, Player] = {}
        for number, (task, name) in enumerate(names.items(), 1):
            tell(f"loading {name}, model {number} of {len(names)}")
            pipe = pipeline(task, name, device=device, dtype=dtype, compile=compiled)
            model = host(name, task, pipe, rows, WAITING)
            self.players[task] = Player(model)
            model.batcher.on_round = self.players[task].plain

    def player(self, task: str) -> Player:
        """The model for a task. Raises MmspecError if none is loaded."""
        if task not in self.players:
            raise MmspecError(f"no model for {task} is loaded: name one, such as {TASKS[task][1]}")
        return self.players[task]

    def stop(self, request: gr.Request) -> None:
        """End everything of a visitor."""
        for player in self.players.values():
            player.stop(request.session_hash)

    def running(self, visitor: str | None) -> bool:
        """Whether a visitor has something running."""
        return any(visitor in player.sessions for player in self.players.values())

    def close(self) -> None:
        """End the models' threads."""
        for player in self.players.values():
            player.model.batcher.close()


def as_seed(value: float | None) -> int | None:
    """A seed as the page gives it; an empty field draws one."""
    return None if value is None else int(value)
