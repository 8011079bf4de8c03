"""What speech generation asks of a codec, and decoding while tokens still come."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmspec.errors import MmspecError


@runtime_checkable
class Codec(Protocol):
    """Audio to tokens and back, in frames of `frame_tokens` tokens and `frame_samples` samples.

    `vocabulary_size` counts the values of a token, those of all codebooks of a frame together. `context` is how many
    frames before and after a frame influence its samples.

    A codec that is saved with a model has a `kind` too, by which `codecs.registry` finds its class, `options`, the
    arguments of `from_pretrained` that its files do not hold, and `save_pretrained`.
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

    def to(self, device: torch.device) -> object:
        """Move to a device; precision stays."""
        ...


@runtime_checkable
class SavedCodec(Codec, Protocol):
    """A codec that a model folder can hold; see `Codec`."""

    kind: ClassVar[str]

    @property
    def options(self) -> dict[str, object]:
        """Arguments of `from_pretrained` beside the folder, as JSON takes them."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write configuration and weights."""
        ...

    @classmethod
    def from_pretrained(cls, folder: Path, **options: object) -> "SavedCodec":
        """Read them, in float32."""
        ...


@runtime_checkable
class ImageTokenizer(Protocol):
    """Codes to pictures. `codes` is how many there are, `scale` the pixels of a code's side."""

    codes: int
    scale: int

    def decode(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        """Pictures in -1..1."""
        ...


class StreamDecoder:
    """Decodes one row while its tokens come.

    The joined chunks are `codec.decode` of the whole, as exactly as `codec.context` is. A pass decodes the `context[0]`
    frames before the new ones, the new ones, and the `hold` frames of right context that samples wait for (`context[1]`
    unless given; fewer come sooner and are less exact). Chunks lie on the CPU.
    """

    def __init__(self, codec: Codec, hold: int | None = None):
        self.codec = codec
        self.before, self.hold = codec.context[0], codec.context[1] if hold is None else hold
        if self.hold < 0:
            raise MmspecError(f"hold is {hold}: give the frames of right context to wait for, 0 or more")
        # Tokens of the window, whose first `done` frames are out.
        self.tokens: list[int] = []
        self.done = 0

    def push(self, tokens: list[int]) -> Float[Tensor, "sample"]:
        """The samples that no later token changes: of every whole frame that `hold` frames follow; often none."""
        self.tokens += tokens
        return self._settle(self.hold)

    def flush(self, tokens: Sequence[int] = ()) -> Float[Tensor, "sample"]:
        """The samples of all whole frames left, after the last `tokens`; a part of a frame is dropped.

        The next push begins a new row.
        """
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
        dropped = max(0, ready - self.before)
        self.tokens, self.done = self.tokens[dropped * width :], ready - dropped
        return audio
