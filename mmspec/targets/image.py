"""Autoregressive image models: codes in raster order after a text prefix."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.engine.state import State
from mmspec.errors import MmspecError
from mmspec.targets.base import Grid
from mmspec.targets.causal import CausalTarget


class ImageTarget(CausalTarget):
    """A causal model over VQ codes on a grid.

    `codes` are the model's ids of the codes. Where the grid has an end-of-row token, `row_end` is its id, and it is the
    last of the vocabulary: it is forced where a row ends and forbidden elsewhere.
    """

    grid: Grid

    def __init__(
        self,
        model: PreTrainedModel,
        codes: Sequence[int],
        grid: Grid,
        row_end: int | None = None,
        weights_hash: str = "",
        check: bool = True,
    ):
        if grid.end_of_row != (row_end is not None):
            raise MmspecError("row_end is the model's id of the end-of-row token: give it where the grid has one")
        super().__init__(model, [*codes, *([] if row_end is None else [row_end])], weights_hash, check)
        self.grid = grid

    def guide(
        self, state: State, logits: Float[Tensor, "branch row node vocab"], positions: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        guided = super().guide(state, logits, positions)
        if not self.grid.end_of_row:
            return guided
        row_ends = (positions % self.grid.stride == self.grid.width)[..., None]
        last = torch.arange(self.vocabulary_size, device=guided.device) == self.vocabulary_size - 1
        return guided.masked_fill(row_ends != last, -torch.inf)
