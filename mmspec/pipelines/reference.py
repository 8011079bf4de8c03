"""A recording of a voice."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from mmspec.media import audio as sound


@dataclass(frozen=True, slots=True)
class Reference:
    """A recording of the voice to speak with, and what is said in it."""

    path: Path
    text: str = ""

    def audio(self) -> tuple[Float[Tensor, "1 sample"], int]:
        """Its samples, as one channel, and their rate."""
        return sound.read(self.path)
