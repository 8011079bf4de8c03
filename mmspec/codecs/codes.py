"""Codes without a way to hear them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmspec.errors import MmspecError


class CodesOnly:
    """In the place of a codec that is lacking: how many codes there are and make a second, and the error for sound."""

    sampling_rate, frame_tokens, context = 24_000, 1, (0, 0)

    def __init__(self, codes: int, rate: int, error: MmspecError):
        self.vocabulary_size, self.frame_samples, self.error = codes, self.sampling_rate // rate, error

    def to(self, device: torch.device) -> "CodesOnly":
        """Nothing to move."""
        return self

    def encode(self, audio: Float[Tensor, "row sample"], sampling_rate: int) -> Int[Tensor, "row token"]:
        raise self.error

    def decode(self, tokens: Int[Tensor, "row token"]) -> Float[Tensor, "row sample"]:
        raise self.error
