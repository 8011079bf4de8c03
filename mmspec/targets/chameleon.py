"""Chameleon, and models tuned from it that draw, such as Anole and Lumina-mGPT: codes among the ids of text."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.errors import MmspecError
from mmspec.targets.base import Grid
from mmspec.targets.image import ImageTarget


class ChameleonTarget(ImageTarget):
    """A `ChameleonForConditionalGeneration` that draws.

    Token t is code t of its VQ model, whose id the names of the model's vocabulary map say. The forward of transformers
    forbids these ids, and so does its `generate`: the output head is read instead. The grid is that of the VQ model's
    resolution unless another is given, with the id `row_end` that closes its rows if it has one.
    """

    families: ClassVar[tuple[str, ...]] = ("chameleon",)

    def __init__(
        self,
        model: PreTrainedModel,
        weights_hash: str = "",
        check: bool = True,
        grid: Grid | None = None,
        row_end: int | None = None,
    ):
        if model.config.model_type not in self.families:
            raise MmspecError(f"{type(model).__name__} is no Chameleon: give a ChameleonForConditionalGeneration")
        ids, vq = model.model.vocabulary_mapping.img2bpe, model.config.vq_config
        if sorted(ids) != list(range(vq.num_embeddings)):
            raise MmspecError(
                f"this Chameleon names {len(ids)} codes in its vocabulary_map, and its VQ model knows "
                f"{vq.num_embeddings}"
            )
        side = vq.resolution // 2 ** (len(vq.channel_multiplier) - 1)
        codes = [ids[code] for code in range(vq.num_embeddings)]
        super().__init__(model, codes, grid or Grid(side, side), row_end, weights_hash, check)

    @contextmanager
    def _saying_codes(self) -> Iterator[None]:
        """Let the forward of transformers say codes: it forbids those that its vocabulary mapping lists."""
        names = self.model.model.vocabulary_mapping
        forbidden, names.image_tokens = names.image_tokens, []
        try:
            yield
        finally:
            names.image_tokens = forbidden

    def own_logits(
        self, nodes: Int[Tensor, "row node"], mask: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        with self._saying_codes():
            return super().own_logits(nodes, mask)

    def own_ids(self, **options: object) -> Int[Tensor, "row token"]:
        with self._saying_codes():
            return super().own_ids(**options)


class LuminaTarget(ChameleonTarget):
    """A Lumina-mGPT that draws pictures of `height` rows of `width` codes, each closed by a token of its own."""

    def __init__(self, model: PreTrainedModel, height: int, width: int, weights_hash: str = "", check: bool = True):
        row_end = (model.config.vocabulary_map or {}).get("<reserved08799>")
        if row_end is None:
            raise MmspecError("this model's vocabulary_map has no <reserved08799>, which closes rows of a Lumina-mGPT")
        super().__init__(model, weights_hash, check, Grid(height, width, True), row_end)
