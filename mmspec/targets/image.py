"""Autoregressive image models: codes in raster order after a text prefix."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.engine.state import State
from mmspec.targets.base import Grid
from mmspec.targets.causal import CausalTarget


class ImageTarget(CausalTarget):
    """A causal model over VQ codes on a grid; with an end-of-row token, that token is the last of the vocabulary.

    End-of-row tokens are forced where a row ends and forbidden elsewhere.
    """

    def __init__(self, model: PreTrainedModel, offset: int, codes: int, grid: Grid, weights_hash: str = ""):
        super().__init__(model, offset, codes + grid.end_of_row, weights_hash)
        self.grid = grid

    def guide(
        self, state: State, logits: Float[Tensor, "stream row node vocab"], places: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        mixed = super().guide(state, logits, places)
        if not self.grid.end_of_row:
            return mixed
        closes = (places % self.grid.stride == self.grid.width)[..., None]
        last = torch.arange(self.vocabulary_size, device=mixed.device) == self.vocabulary_size - 1
        return mixed.masked_fill(closes != last, -torch.inf)
