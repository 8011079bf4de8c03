"""What the tabs share: models that many visitors use at once, stopping, and live numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import gradio as gr
import torch

from mmspec import drafters, zoo
from mmspec.engine.accept import acceptance
from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.pipelines import TASKS, pipeline, task_of
from mmspec.pipelines.base import Pipeline
from mmspec.pipelines.session import Session
from mmspec.pipelines.solo import Solo
from mmspec.serve.hosting import HostedModel, example, host
from mmspec.targets.base import Prompts

# Rounds of plain decoding whose speed is compared with, and how often they are timed: other work may wake for a moment.
SAMPLE, REPEATS = 24, 3

# Calls that may wait for a model.
WAITING = 64


@dataclass
class Player:
    """A model that is shown, plain decoding's tokens per second here by number of CFG branches, and visitors'
    sessions.
    """

    model: HostedModel
    plain: dict[int, float]
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

    def numbers(self, stats: GenerationStats, branches: int = 1) -> str:
        """One line, as Markdown."""
        rows = len(stats.runs)
        if stats.tokens <= rows:
            return ""
        rate, plain = row_rate(stats), self.plain[branches]
        same = "the same output as without" if stats.lossless else "**not** the same output as without"
        return (
            f"**{rate:.0f} tokens/s** · {stats.mean_acceptance_length:.2f} tokens a round · "
            f"**{rate / plain:.2f} ×** plain decoding ({plain:.0f} tokens/s here) · "
            f"{stats.drafter}, {stats.acceptance}: {same}"
        )


def row_rate(stats: GenerationStats) -> float:
    """Tokens per second of a row, after the first ones, which come with the prompt."""
    rows = len(stats.runs)
    return (stats.tokens - rows) / (stats.total - stats.prefill) / rows


def measure_plain(pipe: Pipeline) -> dict[int, float]:
    """Tokens per second of plain decoding, by number of CFG branches.

    Where there are voices the codec has its part of this machine while tokens come, so plain decoding is timed with it.
    """
    row = example(pipe.folder)
    if pipe.voices:
        calls = (pipe(row["prompt"], seed=0, drafter="none", stream_to=len).stats for _ in range(REPEATS - 1))
        return {1: max(map(row_rate, calls))}
    rates: dict[int, float] = {}
    prompts, stop = pipe.encode_examples([row])
    for guidance in (0.0, 1.0) if prompts.unconditional else (1.0,):
        part = prompts.select(slice(None), guidance)
        rates[len(part.branches)] = max(_time_plain(pipe, part, stop.length) for _ in range(REPEATS))
    return rates


def _time_plain(pipe: Pipeline, prompts: Prompts, length: int) -> float:
    stats = GenerationStats()
    run = Solo()(pipe.target, pipe.folder, "none", prompts, length)
    rounds = run(
        prompts,
        1,
        Stop(SAMPLE),
        sampling=SamplingOptions(1.0),
        seeds=[0],
        rule=acceptance("exact"),
        stats=stats,
        cancel=lambda: False,
    )
    for _ in rounds:
        pass
    return row_rate(stats)


class Stage:
    """The models of a demo, one for each task; those for `tasks` alone if given."""

    def __init__(
        self,
        models: tuple[str, ...] = (),
        device: str | None = None,
        dtype: str | torch.dtype = "bf16",
        tasks: set[str] | None = None,
        rows: int = 8,
    ):
        self.players: dict[str, Player] = {}
        for name in models or zoo.bundled():
            task = task_of(zoo.resolve(name, allow_transformers=True))
            if tasks is not None and task not in tasks:
                continue
            if task in self.players:
                raise MmspecError(f"{name} and {self.players[task].name} are both for {task}: name one")
            model = host(name, task, pipeline(task, name, device=device, dtype=dtype), rows, WAITING)
            self.players[task] = Player(model, measure_plain(model.pipe))

    def player(self, task: str) -> Player:
        """The model for a task. Raises MmspecError if none is loaded."""
        if task not in self.players:
            raise MmspecError(f"no model for {task} is loaded: name one, such as {TASKS[task][1]}")
        return self.players[task]

    def stop(self, request: gr.Request) -> None:
        """End everything of a visitor."""
        for player in self.players.values():
            player.stop(request.session_hash)

    def close(self) -> None:
        """End the models' threads."""
        for player in self.players.values():
            player.model.batcher.close()


def as_seed(value: float | None) -> int | None:
    """A seed as the page gives it; an empty field draws one."""
    return None if value is None else int(value)
