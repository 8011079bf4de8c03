"""One caller's use of a pipeline."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from mmspec.pipelines.base import Pipeline
    from mmspec.pipelines.solo import Runner

P = TypeVar("P", bound="Pipeline")


class Session(Generic[P]):
    """A pipeline with an `interrupt` of its own, and a `runner` of its own if given; models are shared.

    Setting `interrupt` from any thread ends the session's present generation between rounds. Generations begin with it
    false. `stream` and calling take what the pipeline's own take.
    """

    def __init__(self, pipe: P, runner: "Runner | None" = None):
        self.pipe, self.runner, self.interrupt = pipe, runner, False

    @property
    def _interrupt(self) -> bool:
        """The name that pipelines of diffusers use."""
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self.interrupt = value

    def interrupted(self) -> bool:
        """Whether the present generation is to end."""
        return self.interrupt

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """The pipeline's `stream` in this session."""
        return self.pipe.stream(*args, session=self, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's call in this session."""
        return self.pipe(*args, session=self, **kwargs)
