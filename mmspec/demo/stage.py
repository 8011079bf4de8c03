"""What the tabs share: models that many visitors use at once, stopping, and live numbers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from mmspec import drafters, zoo
from mmspec.engine.accept import acceptance
from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.pipelines import TASKS, pipeline, task_of
from mmspec.pipelines.solo import Solo
from mmspec.serve.batcher import example, share

# Rounds of plain decoding whose speed is compared with.
SAMPLE = 24


@dataclass
class Player:
    """A model that is shown: its pipeline, plain decoding's tokens per second here by number of streams, and seats for visitors that are
    in the middle of something."""

    name: str
    pipe: Any
    plain: dict[int, float] = field(default_factory=dict)
    seats: dict[str | None, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = example(self.pipe.folder)
        if hasattr(
            self.pipe, "voices"
        ):  # the codec has its part of this machine while tokens come: plain decoding is given the same
            self.plain[1] = max(
                pace(self.pipe(asked["prompt"], seed=0, drafter="none", stream_to=len).total) for _ in range(2)
            )
            return
        prompts, stop = self.pipe.rows([asked])
        for guidance in (0.0, 1.0) if prompts.unconditional else (1.0,):
            part = prompts.select(slice(None), guidance)
            rates = []
            for _ in range(3):  # the best of them: other work may wake for a moment
                stats = GenerationStats()
                law: dict[str, Any] = dict(
                    sampling=SamplingOptions(1.0), seeds=[0], rule=acceptance("exact"), stats=stats
                )
                for _ in Solo()(self.pipe, "none", part, stop.length)(part, 1, Stop(SAMPLE), **law):
                    pass
                rates.append(pace(stats))
            self.plain[len(part.branches)] = max(rates)

    @property
    def drafters(self) -> list[str]:
        return drafters.usable(self.pipe.folder)

    @contextmanager
    def seat(self, session: str | None) -> Iterator[Any]:
        """The pipeline for one visitor, until `stop(session)`. What is wrong is told in a message."""
        self.stop(session)
        mine = self.seats[session] = copy.copy(self.pipe)
        try:
            yield mine
        except MmspecError as error:
            raise gr.Error(str(error), print_exception=False) from None
        finally:
            mine.interrupt = True
            if self.seats.get(session) is mine:
                del self.seats[session]

    def stop(self, session: str | None) -> None:
        """End what a visitor has running."""
        if session in self.seats:
            self.seats[session].interrupt = True

    def numbers(self, stats: GenerationStats, streams: int = 1) -> str:
        """One line, as Markdown."""
        rows = len(stats.runs)
        if stats.tokens <= rows:
            return ""
        rate, plain = pace(stats), self.plain[streams]
        kept = "the same output as without" if stats.lossless else "**not** the same output as without"
        return (
            f"**{rate:.0f} tokens/s** · {stats.mean_acceptance_length:.2f} tokens a round · **{rate / plain:.2f} ×** plain decoding "
            f"({plain:.0f} tokens/s here) · {stats.drafter}, {stats.acceptance}: {kept}"
        )


def pace(stats: GenerationStats) -> float:
    """Tokens per second of a row, after the first ones, which come with the prompt."""
    rows = len(stats.runs)
    return (stats.tokens - rows) / (stats.total - stats.prefill) / rows


class Stage:
    """The models of a demo, one for each task; those for `tasks` alone if given."""

    def __init__(
        self,
        models: tuple[str, ...] = (),
        device: str | None = None,
        dtype: Any = "bf16",
        tasks: set[str] | None = None,
        rows: int = 8,
    ):
        self.players: dict[str, Player] = {}
        for name in models or zoo.bundled():
            task = task_of(zoo.resolve(name, bare=True))
            if tasks is not None and task not in tasks:
                continue
            if task in self.players:
                raise MmspecError(f"{name} and {self.players[task].name} are both for {task}: name one")
            pipe = pipeline(task, name, device=device, dtype=dtype)
            share(pipe, rows, 64)
            self.players[task] = Player(name, pipe)

    def player(self, task: str) -> Player:
        if task not in self.players:
            raise MmspecError(f"no model for {task} is loaded: name one, such as {TASKS[task][1]}")
        return self.players[task]

    def stop(self, request: gr.Request) -> None:
        """End everything of a visitor."""
        for player in self.players.values():
            player.stop(request.session_hash)

    def close(self) -> None:
        for player in self.players.values():
            player.pipe.loop.close()


def seed_of(seed: float | None) -> int | None:
    """A seed as the page gives it; none is drawn."""
    return None if seed is None else int(seed)
