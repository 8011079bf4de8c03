"""A codec language model as a target."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.codecs.base import Codec
from mmspec.targets.base import State
from mmspec.targets.causal import CausalTarget


class SpeechTarget(CausalTarget):
    """A causal model over `first` tokens of text, a codec's tokens, and an end token, the last of the vocabulary.

    Where a frame has several tokens, only those of a place's codebook are possible there, and the end only between frames; there is no
    text between those.
    """

    def __init__(self, model: PreTrainedModel, offset: int, codec: Codec, hash: str = "", first: int = 0):
        super().__init__(model, offset, first + codec.vocabulary + 1, hash)
        self.codebooks, self.codes = codec.frame_tokens, codec.vocabulary // codec.frame_tokens

    def guide(
        self, state: State, logits: Float[Tensor, "stream row node vocab"], places: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        mixed = super().guide(state, logits, places)
        if self.codebooks == 1:
            return mixed
        book = torch.arange(self.vocabulary, device=mixed.device) // self.codes % self.codebooks  # the end counts to the first
        return mixed.masked_fill(book != (places % self.codebooks)[..., None], -torch.inf)
