"""How a pipeline runs generations unless told otherwise: one after the other, in the caller's thread."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from mmspec import drafters
from mmspec.drafters.base import Drafter
from mmspec.engine.accept import AcceptanceRule
from mmspec.engine.loop import Round, Stop, stream
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.targets.base import Prompts, Target


class Run(Protocol):
    """Runs one generation: the rounds of `engine.loop.stream`."""

    def __call__(
        self,
        prompts: Prompts,
        rows: int,
        stop: Stop,
        *,
        sampling: SamplingOptions,
        seeds: list[int],
        rule: AcceptanceRule,
        stats: GenerationStats,
        cancel: Callable[[], bool],
    ) -> Iterator[Round]: ...


class Runner(Protocol):
    """What a pipeline's `runner` is: it gets a drafter ready for up to `length` tokens after prompts like these."""

    def __call__(
        self, target: Target, folder: Path | None, drafter: str | Drafter, prompts: Prompts, length: int
    ) -> Run: ...


class Solo:
    """A `Runner` that keeps a drafter by name for the next generation of as many rows."""

    def __init__(self) -> None:
        self._target: Target | None = None
        self._idle: dict[tuple[str, int], Drafter] = {}

    def __call__(
        self, target: Target, folder: Path | None, drafter: str | Drafter, prompts: Prompts, length: int
    ) -> Run:
        if target is not self._target:
            self._target, self._idle = target, {}
        key = (str(drafter), len(prompts.conditional))
        idle = self._idle.pop(key, None) if isinstance(drafter, str) else None
        ready = drafters.load(idle or drafter, folder, target, prompts, length)

        def run(
            prompts: Prompts,
            rows: int,
            stop: Stop,
            *,
            sampling: SamplingOptions,
            seeds: list[int],
            rule: AcceptanceRule,
            stats: GenerationStats,
            cancel: Callable[[], bool],
        ) -> Iterator[Round]:
            failed = False
            try:
                yield from stream(target, prompts, rows, stop, ready, sampling, seeds, rule, cancel=cancel, stats=stats)
            except Exception:
                failed = True
                raise
            finally:
                if isinstance(drafter, str) and not failed:
                    self._idle[key] = ready

        return run
