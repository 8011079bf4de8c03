"""VQ codes in raster order after a text prefix."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from mmspec.engine.state import State
from mmspec.errors import MmspecError
from mmspec.targets.base import Grid
from mmspec.targets.causal import CausalTarget


class ImageTarget(CausalTarget):
    """A causal model over VQ codes on a grid.

    `codes` are the model's ids of the codes. Where the grid has an end-of-row token, `row_end` is its id: it is forced
    where a row ends and forbidden elsewhere. `ends` are ids that close the picture, each forced at its place after the
    last row. Both come after the codes in the vocabulary. A place after all of these is that of another picture.
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
        ends: Sequence[int] = (),
    ):
        if grid.end_of_row != (row_end is not None):
            raise MmspecError("row_end is the model's id of the end-of-row token: give it where the grid has one")
        others = [*([] if row_end is None else [row_end]), *ends]
        super().__init__(model, [*codes, *others], weights_hash, check)
        self.grid, self.codes = grid, len(codes)
        row = [-1] * grid.width + [self.codes] * grid.end_of_row
        closing = range(self.vocabulary_size - len(ends), self.vocabulary_size)
        # The token that is forced at each place, -1 for a code.
        self.forced: Int[Tensor, place] = torch.tensor([*row * grid.height, *closing], device=model.device)

    def guide(
        self, state: State, logits: Float[Tensor, "branch row node vocab"], positions: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        guided = super().guide(state, logits, positions)
        if self.codes == self.vocabulary_size:
            return guided
        forced = self.forced[positions % len(self.forced)][..., None]
        tokens = torch.arange(self.vocabulary_size, device=guided.device)
        allowed = torch.where(forced < 0, tokens < self.codes, tokens == forced)
        return guided.masked_fill(~allowed, -torch.inf)

    def own_ids(self, **options: object) -> Int[Tensor, "row token"]:
        # Otherwise the guidance of its generation_config is that of a prompt without a twin, too.
        return super().own_ids(**{"guidance_scale": 1.0} | options)

    def generate_processor(self, start: int) -> LogitsProcessor:
        return super().generate_processor(start) if self.codes == self.vocabulary_size else PlaceProcessor(self, start)


class PlaceProcessor(LogitsProcessor):
    """Makes `transformers.generate` force what is forced by place after prompts of `start` ids, and else give codes."""

    def __init__(self, target: ImageTarget, start: int):
        self.target, self.start = target, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        target = self.target
        forced = int(target.forced[(input_ids.shape[1] - self.start) % len(target.forced)])
        allowed = target.vocabulary[: target.codes] if forced < 0 else target.vocabulary[forced : forced + 1]
        masked = torch.full_like(scores, -torch.inf)
        masked[:, allowed] = scores[:, allowed]
        return masked
