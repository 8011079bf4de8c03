"""What the pipelines return, whole and in parts."""

import base64
import html
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mmspec import files
from mmspec.engine.stats import GenerationStats
from mmspec.pipelines.chats import Chat
from mmspec.pipelines.phonemize import Sentence

# A list of PIL images, an array or a tensor, by `output_type`.
Images: TypeAlias = Any


@dataclass(frozen=True, slots=True, repr=False)
class PartialImages:
    """Unfinished pictures after one round: all tokens so far, those of this round, and a way to draw them."""

    step: int
    tokens: list[list[int]]
    new: list[list[int]]
    stats: GenerationStats
    seeds: list[int]
    total: int
    paint: Callable[[list[list[int]], str], Images]

    def __repr__(self) -> str:
        return (
            f"PartialImages(step={self.step}, {self.position} of {self.total} tokens, seeds={short_list(self.seeds)})"
        )

    @property
    def position(self) -> int:
        """Tokens of the row that has the fewest."""
        return min(map(len, self.tokens))

    def images(self, output_type: str = "pil") -> Images:
        """The pictures as they are; positions without a code are grey."""
        return self.paint(self.tokens, output_type)


@dataclass(slots=True, repr=False)
class TextToSpeechOutput:
    """A waveform in -1..1 and how it came about; lists have one entry for each sentence that has begun.

    `stats` are those of all sentences together, and `sentence_stats` those of each. `tokens` are the codec's, and
    `rounds` says how many of them each round brought: drafted ones, and the bonus. `ended` says why each sentence
    ended: "end" (the model's own end token), "length" (longest duration for its text), "silence" or "loop" (two seconds
    of nothing else), "interrupted". `unsaid` are characters that were left out. `first_audio` is seconds from the call
    to the first samples, less those for loading a drafter.
    """

    sampling_rate: int
    sentences: list[Sentence]
    seeds: list[int]
    unsaid: list[str]
    tokens: list[list[int]] = field(default_factory=list)
    rounds: list[list[tuple[int, int]]] = field(default_factory=list)
    sentence_stats: list[GenerationStats] = field(default_factory=list)
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
    def stats(self) -> GenerationStats:
        """Statistics of all sentences together."""
        return GenerationStats.sum(self.sentence_stats)

    @property
    def total(self) -> GenerationStats:
        """The name that `stats` had in 0.1."""
        warnings.warn("total is deprecated: use stats", DeprecationWarning, stacklevel=2)
        return self.stats

    def __repr__(self) -> str:
        return (
            f"TextToSpeechOutput({self.seconds:.2f} s at {self.sampling_rate} Hz, {len(self.tokens)} sentences, "
            f"seeds={short_list(self.seeds)}, {self.stats!r})"
        )

    def _repr_html_(self) -> str:
        """A player, for notebooks; nothing to hear is a line of text."""
        from mmspec.media import audio

        if not self.seconds:
            return html.escape(repr(self))
        data = base64.b64encode(audio.encode(self.audio, self.sampling_rate, "WAV", {})).decode()
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'

    def save(self, path: str | Path, **metadata: object) -> None:
        """Write a .wav, .flac or .ogg file.

        Its comment says as JSON how it came about (`lossless`, seed, ...), and the metadata.
        """
        from mmspec.media import audio

        files.check_output(Path(path), audio.KINDS)
        facts = metadata | self.stats.facts | {"seed": self.seeds[0], "ended": self.ended}
        audio.save(self.audio, self.sampling_rate, Path(path), facts)


@dataclass(frozen=True, slots=True, repr=False)
class AudioChunk:
    """Audio that was just verified and decoded, of the sentence with that number; `output` is all that there
    is so far.
    """

    audio: Float[Tensor, "sample"]
    sentence: int
    output: TextToSpeechOutput

    def __repr__(self) -> str:
        return f"AudioChunk({len(self.audio)} samples of sentence {self.sentence})"


@dataclass(slots=True, repr=False)
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
        """The only answer. Warns and gives the first if there are several."""
        if len(self.texts) > 1:
            warnings.warn(f"text is the first of {len(self.texts)} answers: use texts for all", stacklevel=2)
        return self.texts[0]

    def __repr__(self) -> str:
        shown = [text if len(text) <= 60 else f"{text[:57]}..." for text in self.texts]
        return f"ImageTextToTextOutput({short_list(shown)}, seeds={short_list(self.seeds)}, {self.stats!r})"

    def chat(self, row: int = 0) -> Chat:
        """The chat and its answer, to go on with."""
        return [*self.chats[row], {"role": "assistant", "content": [{"type": "text", "text": self.texts[row]}]}]


@dataclass(frozen=True, slots=True, repr=False)
class TextChunk:
    """What one round verified: new text and tokens of every chat; `output` is all that there is so far."""

    texts: list[str]
    tokens: list[list[int]]
    output: ImageTextToTextOutput

    def __repr__(self) -> str:
        return f"TextChunk({short_list(self.texts)})"


def short_list(values: list) -> str:
    """A list as it is printed, its middle left out if it is long."""
    if len(values) <= 6:
        return repr(values)
    return f"[{', '.join(map(repr, values[:3]))}, ..., {values[-1]!r}]"
