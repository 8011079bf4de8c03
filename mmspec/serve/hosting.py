"""Models that many callers use at once: what the server and the demos share."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import time

import torch

from mmspec import zoo
from mmspec.errors import MmspecError
from mmspec.pipelines import pipeline, task_of
from mmspec.pipelines.base import Pipeline
from mmspec.pipelines.families import example_prompts
from mmspec.pipelines.session import Session
from mmspec.serve.batcher import Batcher


@dataclass(slots=True)
class HostedModel:
    """A pipeline whose generations all go through one batcher, its name, and its task."""

    name: str
    task: str
    pipe: Pipeline
    batcher: Batcher
    since: int = field(default_factory=lambda: int(time()))

    def session(self) -> Session:
        """The pipeline for one caller."""
        return self.pipe.session()


def load_pipelines(
    names: Iterable[str], device: str, dtype: torch.dtype, deterministic: bool = False, compiled: bool = False
) -> dict[str, tuple[str, Pipeline]]:
    """Tasks and pipelines of models by name, of every bundled one if none is named; see `Pipeline.deterministic` and
    `Pipeline.compiled`."""
    pipes: dict[str, tuple[str, Pipeline]] = {}
    for name in tuple(names) or zoo.bundled():
        task = task_of(zoo.resolve(name, allow_transformers=True))
        short = Path(name).name
        if short in pipes:
            raise MmspecError(f"two models are called {short}: rename one of their folders")
        pipe = pipeline(task, name, device=device, dtype=dtype)
        pipe.deterministic, pipe.compiled = deterministic, compiled
        pipes[short] = (task, pipe)
    if not pipes:
        raise MmspecError("no model is bundled here: name one")
    return pipes


def host(name: str, task: str, pipe: Pipeline, rows: int, waiting: int) -> HostedModel:
    """Make a pipeline ready for many callers: its batcher, and what passes cost here, measured after an example."""
    batcher = Batcher(pipe.target, pipe.folder, rows, waiting)
    prompts, stop = pipe.encode_examples([example(pipe.folder)])
    for guidance in (0.0, 1.0) if prompts.unconditional else (1.0,):
        batcher.measure(prompts.select(slice(None), guidance), stop.length)
    pipe.runner = batcher
    return HostedModel(name, task, pipe, batcher)


def example(folder: Path | None) -> dict:
    """A prompt of a model folder, some words where it has none."""
    if folder and (folder / zoo.PROMPTS).exists():
        return zoo.prompts(folder)[0]
    return {"prompt": next(iter(example_prompts(folder) if folder else ()), "a red heart")}
