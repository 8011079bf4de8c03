"""What a speech language model that people bring needs beside its weights: prompts as ids, and its tokens as codes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias, Unpack

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from mmspec import zoo
from mmspec.codecs import registry
from mmspec.codecs.base import Codec
from mmspec.codecs.hub import HubCodec
from mmspec.errors import MmspecError, unknown
from mmspec.pipelines.chat_encoder import added_tokens
from mmspec.pipelines.generation_config import speaker_defaults
from mmspec.pipelines.loading import Loading, load_processor
from mmspec.pipelines.reference import Reference
from mmspec.pipelines.transformer import load_transformer
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget

# Bytes of text that the slowest speaker says in a second (English has about 15 in the mean, Chinese 12), and seconds
# that a text may last beyond that.
SLOWEST, SPARE = 6.0, 3.0


Reader: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin


class Speaker(ABC):
    """A speech language model of transformers, its processor (or tokenizer) and its codec.

    `voices` are names that its prompts can hold, the first the default; `open_voices` says that others may be known to
    a model that was trained further. `sampling` is what its authors recommend where `generation_config.json` says
    nothing. `codec_id` is the hub id of its codec. `ends` are tokens that end a text. A text of more than
    `longest_text` bytes is spoken in pieces. The model reads `position_tokens` tokens at each of its positions.
    """

    # What an error calls the family.
    name: ClassVar[str]
    sampling: ClassVar[Mapping[str, object]] = {}
    codec_id: ClassVar[str] = ""
    longest_text: ClassVar[int] = 240
    open_voices: ClassVar[bool] = False
    voices: Sequence[str] = ("default",)
    position_tokens: int = 1
    ends: frozenset[int]

    def __init__(self, model: PreTrainedModel, processor: Reader, codec: Codec):
        self.model, self.processor, self.codec = model, processor, codec
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._control_tokens = added_tokens(self.tokenizer)

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: torch.dtype,
        codec: Codec | str | Path | None = None,
        **loading: Unpack[Loading],
    ) -> Self:
        """The speaker in a folder; `codec` is one, or where one is, in the place of its own. `loading` are options of
        transformers' `from_pretrained`.
        """
        processor = cls.load_processor(folder)
        given = codec if isinstance(codec, Codec) else cls.load_codec(folder, codec)
        return cls(cls.load_model(folder, dtype, **loading), processor, given)

    @classmethod
    def load_processor(cls, folder: Path) -> Reader:
        """The processor of a folder, or its tokenizer."""
        return load_processor(folder)

    @classmethod
    def load_model(cls, folder: Path, dtype: torch.dtype, **loading: Unpack[Loading]) -> PreTrainedModel:
        """The language model of a folder."""
        return load_transformer(folder, dtype, **loading)

    @classmethod
    def load_codec(cls, folder: Path, source: str | Path | None) -> Codec:
        """The codec at `source`; if None, that of the model's folder, or the family's own from the hub."""
        return HubCodec.from_pretrained(cls.codec_folder(folder, source))

    @classmethod
    def codec_folder(cls, folder: Path, source: str | Path | None) -> Path:
        """The folder of the codec; see `load_codec`."""
        if source is None and (folder / "codec").is_dir():
            return folder / "codec"
        if source is None and not cls.codec_id:
            raise MmspecError(
                f"{folder} has no folder named codec: give the {cls.name} model's codec, a folder or a hub id, by "
                "--codec, or as codec= in Python"
            )
        name = source or cls.codec_id
        return path if (path := Path(name).expanduser()).is_dir() else zoo.download_codec(str(name))

    def save(self, folder: Path, **options: object) -> None:
        """Write the codec, the processor and the language model."""
        registry.save(self.codec, folder / "codec")
        self.processor.save_pretrained(folder)
        self.model.save_pretrained(folder, **options)

    @abstractmethod
    def target(self, weights_hash: str) -> CausalTarget:
        """The model as the loop sees it."""

    @abstractmethod
    def read(self, text: str, voice: str, context: Any) -> list[int]:
        """A text's ids, up to where speech begins; `context` is what `listen` gave, None without a reference."""

    def listen(self, reference: Reference) -> Any:
        """What `read` needs of a reference. Raises MmspecError for a family that clones no voices."""
        raise MmspecError(f"{self.name} clones no voice from a recording: leave the reference out")

    def codes(self, tokens: list[int]) -> list[int]:
        """The codec's tokens in a text's tokens so far; those of a longer beginning begin with those of a shorter."""
        return [token for token in tokens if 0 <= token < self.codec.vocabulary_size]

    def over(self, tokens: list[int]) -> bool:
        """Whether a text's tokens have come to their end."""
        return bool(tokens) and tokens[-1] in self.ends

    def longest(self, text: str) -> int:
        """The maximum number of tokens of a text."""
        rate = self.codec.frame_tokens * self.codec.sampling_rate / self.codec.frame_samples
        return round(rate * (len(text.encode()) / SLOWEST + SPARE))

    def takes_voice(self, voice: str) -> bool:
        """Whether a voice is known, or may be."""
        return voice in self.voices or (self.open_voices and voice.isalnum())

    def encode(self, texts: list[str], voices: list[str], reference: Reference | None = None) -> Prompts:
        """Prompts of texts, each for its voice."""
        for voice in voices:
            if not self.takes_voice(voice):
                raise unknown("voice", voice, self.voices)
        said = [("text", text) for text in texts]
        for name, text in [*said, ("reference's text", reference.text if reference else "")]:
            if found := sorted(token for token in self._control_tokens if token in text):
                raise MmspecError(f"the {name} holds {found[0]}, a control token of the model: leave it out")
        context = None if reference is None else self.listen(reference)
        return Prompts([self.read(text, voice, context) for text, voice in zip(texts, voices, strict=True)])

    def sampling_kwargs(self, given: dict[str, object]) -> dict[str, object]:
        """How to sample where some options are given."""
        return self.defaults | given

    def ids(self, *tokens: str) -> list[int]:
        """Ids of tokens by name. Raises MmspecError for one that the tokenizer lacks."""
        known = self.tokenizer.get_vocab()
        missing = [token for token in tokens if token not in known]
        if missing:
            raise MmspecError(f"the tokenizer has no token {missing[0]}, so this is no {self.name}: restore its files")
        return [known[token] for token in tokens]

    @property
    def defaults(self) -> dict[str, object]:
        """How to sample: as `generation_config.json` says, else as the family's authors do."""
        return speaker_defaults(self.model.generation_config.to_dict(), self.sampling)
