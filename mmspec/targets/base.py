"""What the loop asks of a target, and the state of one generation."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmspec.engine.state import Output, State
from mmspec.engine.tree import DraftTree


@dataclass(frozen=True, slots=True)
class Grid:
    """The raster that tokens fill: `height` rows of `width` codes, each closed by an end-of-row token if there is one."""

    height: int
    width: int
    end_of_row: bool = False

    @property
    def stride(self) -> int:
        """Tokens from one place to the place below it."""
        return self.width + self.end_of_row

    @property
    def tokens(self) -> int:
        return self.height * self.stride


@runtime_checkable
class Target(Protocol):
    """A model whose output must be kept; `strict` are tokens that lossy rules leave alone (`accept.Acceptance`)."""

    vocabulary_size: int
    weights_hash: str
    hidden_size: int
    strict: frozenset[int]

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def prefill(self, prompts: Any, capacity: int, features: bool) -> State:
        """Read the prompts. `capacity` is new tokens plus one tree, for each row."""
        ...

    def forward(self, state: State, tree: DraftTree) -> Output:
        """One pass over the tree; nothing is committed."""
        ...

    def logits(self, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape vocab"]:
        """The target's own output head, float32 or wider."""
        ...

    def guide(
        self, state: State, logits: Float[Tensor, "stream row node vocab"], places: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        """Mix the streams' logits for the tokens at `places` (guidance, forced tokens): what drafters must apply too."""
        ...
