"""GLM-Image's first stage: the codes of a small preview, then those of the picture, at positions on two grids."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.engine.state import State
from mmspec.errors import MmspecError
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.image import ImageTarget


class GlmImageTarget(ImageTarget):
    """A `GlmImageForConditionalGeneration`, the "vision_language_encoder" of diffusers' `GlmImagePipeline`.

    `grids` are height and width in codes of what is drawn, as its processor's `image_grid_thw` has them: the picture
    first, then the previews, the last of which is drawn first. Tokens are the codes of its VQ model. Its head knows
    some ids more, which no second stage can paint: they are never drawn. There is no guidance in this stage.
    """

    families: ClassVar[tuple[str, ...]] = ("glm_image",)

    def __init__(
        self,
        model: PreTrainedModel,
        grids: Sequence[tuple[int, int]],
        weights_hash: str = "",
        check: bool = True,
    ):
        if model.config.model_type not in self.families:
            raise MmspecError(f"{type(model).__name__} is no GLM-Image: give a GlmImageForConditionalGeneration")
        self._grids = [[1, *grid] for grid in grids]
        codes = range(model.config.vq_config.num_embeddings)
        super().__init__(model, codes, self.raster(grids), None, weights_hash, check)
        # A prompt's last token comes before all grids; its place is -1.
        last = torch.full((3, 1), -1, device=self.device)
        self._offsets: Int[Tensor, "axis place"] = torch.cat([last, self._new_positions()], 1)

    @staticmethod
    def raster(grids: Sequence[tuple[int, int]]) -> Grid:
        """The raster of the picture, after the codes of its previews."""
        (height, width), *previews = grids
        return Grid(height, width, before=sum(rows * columns for rows, columns in previews))

    def _new_positions(self) -> Int[Tensor, "axis place"]:
        """The positions that the model itself gives to new tokens, less the number of the prompt's tokens."""
        prompt = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.model.model.get_rope_index(prompt, **self._grid_inputs())
        return self.model.model._cached_decode_position_ids[0] - prompt.shape[1]

    def _grid_inputs(self) -> dict[str, Tensor]:
        grids = torch.tensor(self._grids, device=self.device)
        return {"image_grid_thw": grids, "images_per_sample": torch.tensor([len(grids)], device=self.device)}

    def prompt_inputs(self, prompts: Prompts) -> list[dict[str, Tensor]]:
        return [self._grid_inputs() for _ in prompts.branches]

    def position_ids(self, state: State, depths: Int[Tensor, "row node"]) -> Int[Tensor, "axis sequence node"]:
        counts = torch.tensor(state.counts, device=self.device)
        # Nodes after the last place are never committed.
        places = (counts[:, None] + depths).clamp(max=self._offsets.shape[1] - 1)
        prompts = state.cache.lengths + 1 - counts.repeat(state.branches)
        return prompts[:, None] + self._offsets[:, places].repeat(1, state.branches, 1)

    def own_ids(self, **options: object) -> Int[Tensor, "row token"]:
        return super().own_ids(**options, **self._grid_inputs())
