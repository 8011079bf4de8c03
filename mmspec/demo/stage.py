"""What the tabs share: models that many visitors use at once, stopping, and live numbers."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import gradio as gr

from mmspec import drafters, zoo
from mmspec.accept import acceptance
from mmspec.batching import Batcher
from mmspec.decode import Stop
from mmspec.errors import MmspecError
from mmspec.metrics import GenerationStats
from mmspec.pipelines import TASKS, pipeline, task_of
from mmspec.pipelines.solo import Solo
from mmspec.sampling import Sampling

# Rounds of plain decoding whose speed is compared with.
SAMPLE = 24


@dataclass
class Player:
    """A model that is shown: its pipeline, and seats for visitors that are in the middle of something."""

    name: str
    pipe: Any
    seats: dict[str | None, Any] = field(default_factory=dict)

    @property
    def drafters(self) -> list[str]:
        return drafters.usable(self.pipe.folder)

    @contextmanager
    def seat(self, session: str | None, alone: bool = False) -> Iterator[Any]:
        """The pipeline for one visitor, until `stop(session)`; `alone` runs the loop by itself. What is wrong is told in a message."""
        self.stop(session)
        mine = self.seats[session] = copy.copy(self.pipe)
        if alone:
            mine.loop = Solo()
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

    @cached_property
    def plain(self) -> float:
        """Tokens per second of plain decoding here, measured once over a few rounds."""
        asked = {"prompt": "a red heart", **next(iter(lines(self.pipe.folder)), {})}
        prompts, stop = self.pipe.rows([asked])
        stats = GenerationStats()
        run = Solo()(self.pipe, "none", prompts, stop.length)
        law: dict[str, Any] = dict(sampling=Sampling(1.0), seeds=[0], rule=acceptance("exact"))
        for _ in run(prompts, 1, Stop(SAMPLE), stats=stats, **law):
            pass
        return stats.tokens / (stats.total - stats.prefill)

    def numbers(self, stats: GenerationStats) -> str:
        """One line, as Markdown."""
        spent = stats.total - stats.prefill
        if not stats.tokens or not spent:
            return ""
        rate = stats.tokens / spent / max(1, len(stats.runs))
        kept = "the same output as without" if stats.lossless else "**not** the same output as without"
        return (
            f"**{rate:.0f} tokens/s** · {stats.mean_acceptance_length:.2f} tokens a round · **{rate / self.plain:.2f} ×** plain decoding "
            f"({self.plain:.0f} tokens/s here) · {stats.drafter}, {stats.acceptance}: {kept}"
        )


def lines(folder: Path | None) -> list[dict]:
    """The example prompts of a model folder."""
    import json

    path = folder / "prompts.jsonl" if folder else None
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path and path.is_file() else []


class Stage:
    """The models of a demo, one for each task."""

    def __init__(self, models: tuple[str, ...] = (), device: str | None = None, dtype: Any = "bf16", rows: int = 8):
        self.players: dict[str, Player] = {}
        for name in models or zoo.bundled():
            task = task_of(zoo.resolve(name, bare=True))
            if task in self.players:
                raise MmspecError(f"{name} and {self.players[task].name} are both for {task}: name one")
            pipe = pipeline(task, name, device=device, dtype=dtype)
            pipe.loop = Batcher(rows, waiting=64)
            self.players[task] = Player(name, pipe)
        self.racing = threading.Lock()

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


def chosen(seed: float | None) -> int | None:
    """A seed as it is typed; none is drawn."""
    if seed is None:
        return None
    if seed != int(seed):
        raise gr.Error(f"seed={seed}: give a whole number, or leave it empty", print_exception=False)
    return int(seed)
