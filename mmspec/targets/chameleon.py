"""Chameleon, and models tuned from it that draw, such as Anole: codes among the ids of text."""

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
    forbids these ids, and so does its `generate`: the output head is read instead.
    """

    families: ClassVar[tuple[str, ...]] = ("chameleon",)

    def __init__(self, model: PreTrainedModel, weights_hash: str = "", check: bool = True):
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
        super().__init__(model, codes, Grid(side, side), None, weights_hash, check)

    def own_logits(
        self, nodes: Int[Tensor, "row node"], mask: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        hidden = self.model.model(input_ids=nodes, attention_mask=mask, use_cache=False).last_hidden_state
        return self.model.lm_head(hidden)[..., self.vocabulary]

    def why_not_comparable(self, guidance: float, penalty: float) -> str:
        """Its `generate` never gives a code."""
        return "Chameleon, whose generate draws nothing"
