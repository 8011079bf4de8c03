"""How a pipeline runs the loop unless told otherwise: a generation at a time."""

from collections.abc import Callable, Iterator
from typing import Any

from mmspec import drafters
from mmspec.engine.loop import Round, stream

# Given (prompts, rows, stop, and options of `decode.stream`), the rounds.
Run = Callable[..., Iterator[Round]]


class Solo:
    """`decode.stream` in the caller's thread; a drafter by name is kept for the next generation.

    A pipeline's `loop` may be anything that is called like this one, such as `mmspec.serve.batcher.Batcher`.
    """

    def __init__(self) -> None:
        self._target: Any = None
        self._idle: dict[tuple[str, int], Any] = {}

    def __call__(self, pipe: Any, drafter: Any, prompts: Any, length: int) -> Run:
        """Load a drafter for up to `length` tokens after prompts like these; the result runs one generation after the other."""
        target, key = pipe.target, (str(drafter), len(prompts.conditional))
        if target is not self._target:
            self._target, self._idle = target, {}
        known = self._idle.pop(key, drafter) if isinstance(drafter, str) else drafter
        guesser = drafters.load(known, pipe.folder, target, prompts, length)

        def run(prompts: Any, rows: int, stop: Any, **options: Any) -> Iterator[Round]:
            yield from stream(target, prompts, rows, stop, guesser, **options)
            if isinstance(drafter, str):
                self._idle[key] = guesser

        return run
