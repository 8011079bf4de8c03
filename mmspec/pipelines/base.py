"""What the pipelines over one transformer share: where it is, how the loop sees it, and how the loop is run."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from transformers import PreTrainedModel

from mmspec import zoo
from mmspec.pipelines.solo import Run, Solo
from mmspec.placement import check_pair, dtype_of
from mmspec.targets.causal import CausalTarget

Seen = TypeVar("Seen", bound=CausalTarget)


class TransformerPipeline(ABC, Generic[Seen]):
    """`folder` is where the model was loaded from, `loop` runs generations, and `interrupt` ends the present one between rounds."""

    def __init__(self, transformer: PreTrainedModel):
        self.transformer = transformer
        self.folder: Path | None = None
        self.interrupt = False
        self.loop: Callable[..., Run] = Solo()
        self._target: tuple[tuple, Seen] | None = None

    @abstractmethod
    def build_target(self, weights_hash: str) -> Seen:
        """The transformer as the loop sees it; `weights_hash` names its weights."""

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def target(self) -> Seen:
        """The transformer as the loop sees it, on its present device and in its present dtype."""
        key = (id(self.transformer), self.transformer.device, self.transformer.dtype)
        if self._target is None or self._target[0] != key:
            part = self.folder / "transformer" if self.folder else None
            self._target = (
                key,
                self.build_target(zoo.weights_hash(part if part.is_dir() else part.parent) if part else ""),
            )
        return self._target[1]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device, and the transformer to a dtype."""
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        check_pair(device or self.device, dtype_of(dtype or self.transformer.dtype))
        self.transformer.to(device=device, dtype=dtype)
        return self
