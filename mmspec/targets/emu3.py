"""Emu3 as a model that draws: codes among the ids of text, rows and pictures closed by tokens of their own."""

from collections.abc import Sequence
from typing import ClassVar

from transformers import PreTrainedModel

from mmspec.errors import MmspecError
from mmspec.targets.base import Grid
from mmspec.targets.image import ImageTarget


class Emu3Target(ImageTarget):
    """An `Emu3ForConditionalGeneration` that draws pictures of `height` rows of `width` codes.

    Token t is code t of its VQ model, whose id the model's vocabulary map names; an end-of-row token closes each row.
    `ends` are ids that may close the picture: its decoder needs none of them.
    """

    families: ClassVar[tuple[str, ...]] = ("emu3",)

    def __init__(
        self,
        model: PreTrainedModel,
        height: int,
        width: int,
        weights_hash: str = "",
        check: bool = True,
        ends: Sequence[int] = (),
    ):
        if model.config.model_type not in self.families:
            raise MmspecError(f"{type(model).__name__} is no Emu3: give an Emu3ForConditionalGeneration")
        names = model.vocabulary_mapping
        codes = [names.img2bpe[code] for code in sorted(names.img2bpe)]
        known = model.config.vq_config.codebook_size
        if sorted(names.img2bpe) != list(range(known)):
            raise MmspecError(
                f"this Emu3 names {len(codes)} visual tokens in its vocabulary_map, and its VQ model knows {known}"
            )
        super().__init__(model, codes, Grid(height, width, True), names.eol_token_id, weights_hash, check, ends)
