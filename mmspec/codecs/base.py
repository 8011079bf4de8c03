"""What speech generation asks of a codec, and decoding while tokens still come."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmspec.errors import MmspecError


@runtime_checkable
class Codec(Protocol):
    """Audio to tokens and back, in frames of `frame_tokens` tokens and `frame_samples` samples.

    `vocabulary_size` counts the values of a token, those of all codebooks of a frame together. `context` is how many frames before and
    after a frame influence its samples.
    """

    sampling_rate: int
    vocabulary_size: int
    frame_tokens: int
    frame_samples: int
    context: tuple[int, int]

    def encode(self, audio: Float[Tensor, "row sample"], sampling_rate: int) -> Int[Tensor, "row token"]:
        """Tokens of whole frames; audio at another rate is resampled, and its end is padded with silence."""
        ...

    def decode(self, tokens: Int[Tensor, "row token"]) -> Float[Tensor, "row sample"]:
        """`frame_samples` samples for every frame of tokens."""
        ...


class StreamDecoder:
    """Decodes one row while its tokens come; the joined chunks are `codec.decode` of the whole, as exactly as `codec.context` is.

    A pass decodes the `context[0]` frames before the new ones, the new ones, and the `hold` frames of right context that samples wait
    for (`context[1]` unless given; fewer come sooner and are less exact). Chunks lie on the CPU.
    """

    def __init__(self, codec: Codec, hold: int | None = None):
        self.codec = codec
        self.before, self.hold = codec.context[0], codec.context[1] if hold is None else hold
        if self.hold < 0:
            raise MmspecError(f"hold is {hold}: give the frames of right context to wait for, 0 or more")
        self.tokens: list[int] = []  # of the window, whose first `done` frames are out
        self.done = 0

    def push(self, tokens: list[int]) -> Float[Tensor, "sample"]:
        """The samples that are now settled: of every whole frame that `hold` frames follow; often none."""
        self.tokens += tokens
        return self._settle(self.hold)

    def flush(self, tokens: Sequence[int] = ()) -> Float[Tensor, "sample"]:
        """The samples of all whole frames left, after the last `tokens`; a part of a frame has none and is dropped. The next push begins a new
        row."""
        self.tokens += tokens
        audio = self._settle(0)
        self.tokens, self.done = [], 0
        return audio

    def _settle(self, hold: int) -> Float[Tensor, "sample"]:
        """Samples of the frames up to the last `hold`; frames that no later one needs leave the window."""
        width, size = self.codec.frame_tokens, self.codec.frame_samples
        frames = len(self.tokens) // width
        ready = frames - hold
        if ready <= self.done:
            return torch.zeros(0)
        audio = self.codec.decode(torch.tensor([self.tokens[: frames * width]]))[
            0, self.done * size : ready * size
        ].cpu()
        gone = max(0, ready - self.before)
        self.tokens, self.done = self.tokens[gone * width :], ready - gone
        return audio
