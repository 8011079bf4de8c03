"""What the pipelines return, whole and in parts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor

from mmspec import files
from mmspec.engine.stats import GenerationStats
from mmspec.pipelines.chats import Chat
from mmspec.pipelines.phonemize import Sentence

# A list of PIL images, an array or a tensor, by `output_type`.
Images: TypeAlias = Any


@dataclass
class TextToImageOutput(BaseOutput):
    """Pictures, and how they came about: tokens, seeds and statistics; row i is prompt i // num_images_per_prompt."""

    images: Images
    stats: GenerationStats
    tokens: list[list[int]]
    seeds: list[int]


@dataclass(frozen=True, slots=True)
class PartialImages:
    """Unfinished pictures after one round: all tokens so far, those of this round, and a way to draw them."""

    step: int
    tokens: list[list[int]]
    new: list[list[int]]
    stats: GenerationStats
    seeds: list[int]
    total: int
    paint: Callable[[list[list[int]], str], Images]

    @property
    def position(self) -> int:
        """Tokens of the row that has the fewest."""
        return min(map(len, self.tokens))

    def images(self, output_type: str = "pil") -> Images:
        """The pictures as they are; positions without a code are grey."""
        return self.paint(self.tokens, output_type)


@dataclass(slots=True)
class TextToSpeechOutput:
    """A waveform in -1..1 and how it came about; lists have one entry for each sentence that has begun.

    `tokens` are the codec's, and `rounds` says how many of them each round brought: drafted ones, and the bonus.
    `ended` says why each sentence ended: "end" (the model's own end token), "length" (longest duration for its text),
    "silence" or "loop" (two seconds of nothing else), "interrupted". `unsaid` are characters that were left out.
    `first_audio` is seconds from the call to the first samples, less those for loading a drafter.
    """

    sampling_rate: int
    sentences: list[Sentence]
    seeds: list[int]
    unsaid: list[str]
    tokens: list[list[int]] = field(default_factory=list)
    rounds: list[list[tuple[int, int]]] = field(default_factory=list)
    stats: list[GenerationStats] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    first_audio: float = 0.0
    parts: list[Tensor] = field(default_factory=list)

    @property
    def audio(self) -> Float[Tensor, "sample"]:
        """All parts so far, one after the other."""
        if len(self.parts) != 1:
            self.parts = [torch.cat([torch.zeros(0), *self.parts])]
        return self.parts[0]

    @property
    def seconds(self) -> float:
        """Duration of the audio."""
        return sum(map(len, self.parts)) / self.sampling_rate

    @property
    def total(self) -> GenerationStats:
        """Statistics of all sentences together."""
        return GenerationStats.sum(self.stats)

    def save(self, path: str | Path, **metadata: object) -> None:
        """Write a .wav, .flac or .ogg file.

        Its comment says as JSON how it came about (`lossless`, seed, ...), and the metadata.
        """
        from mmspec.media import audio

        files.check_output(Path(path), audio.KINDS)
        facts = metadata | self.total.facts | {"seed": self.seeds[0], "ended": self.ended}
        audio.save(self.audio, self.sampling_rate, Path(path), facts)


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """Audio that was just verified and decoded, of the sentence with that number; `output` is all that there
    is so far.
    """

    audio: Float[Tensor, "sample"]
    sentence: int
    output: TextToSpeechOutput


@dataclass(slots=True)
class ImageTextToTextOutput:
    """Answers and how they came about, one entry for each chat.

    `ended` is "end" (the model's own), "length" or "interrupted".
    """

    chats: list[Chat]
    seeds: list[int]
    texts: list[str]
    tokens: list[list[int]]
    stats: GenerationStats = field(default_factory=GenerationStats)
    ended: list[str] = field(default_factory=list)
    first_token: float = 0.0
    prompt_tokens: int = 0

    @property
    def text(self) -> str:
        """The first answer, or the only one."""
        return self.texts[0]

    def chat(self, row: int = 0) -> Chat:
        """The chat and its answer, to go on with."""
        return [*self.chats[row], {"role": "assistant", "content": [{"type": "text", "text": self.texts[row]}]}]


@dataclass(frozen=True, slots=True)
class TextChunk:
    """What one round verified: new text and tokens of every chat; `output` is all that there is so far."""

    texts: list[str]
    tokens: list[list[int]]
    output: ImageTextToTextOutput
