"""CosyVoice 2: its language model's codes; the flow and the vocoder that make sound of them are others'."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, Qwen2Config

from mmspec.codecs.base import Codec
from mmspec.codecs.codes import CodesOnly
from mmspec.errors import MmspecError, short
from mmspec.pipelines.families import COSYVOICE, COSYVOICE_TEXT, no_codec
from mmspec.pipelines.loading import Loading, load_processor
from mmspec.pipelines.speaker import Reader, Speaker
from mmspec.targets.cosyvoice import FRAME, MARKS, CosyVoiceTarget, cosyvoice_model, cosyvoice_state

# Tokens that it adds to its text model's, in this order; all but the first three may stand in texts.
ADDED = (
    *("<|im_start|>", "<|im_end|>", "<|endofprompt|>", "[breath]", "<strong>", "</strong>", "[noise]", "[laughter]"),
    *("[cough]", "[clucking]", "[accent]", "[quick_breath]", "<laughter>", "</laughter>", "[hissing]", "[sigh]"),
    *("[vocalized-noise]", "[lipsmack]", "[mn]"),
)

# Codes of a second, and the most codes for each token of a text.
RATE, MOST = 25, 20
# How far back a repetition is one.
WINDOW = 10


class RepetitionAware(LogitsProcessor):
    """Repetition-aware sampling (VALL-E 2, Chen et al. 2024, arXiv 2406.05370) as the logarithm of its distribution.

    A token is drawn from the nucleus; if it is among the last `WINDOW`, one is drawn from the whole distribution in its
    place. So p'(v) = q(v) where v is not among them, plus p(v) times the nucleus's share of those that are.
    """

    def __init__(self, top_p: float, top_k: int):
        self.top_p, self.top_k = top_p, top_k

    def __call__(
        self, input_ids: Int[Tensor, "row position"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        whole = scores.softmax(1)
        ranked, order = whole.sort(dim=1, descending=True, stable=True)
        kept = ranked.cumsum(1) - ranked < self.top_p
        if self.top_k:
            kept[:, self.top_k :] = False
        nucleus = torch.zeros_like(whole).scatter(1, order, ranked * kept)
        nucleus /= nucleus.sum(1, keepdim=True)
        fresh = nucleus.scatter(1, input_ids[:, -WINDOW:], 0.0)
        return (fresh + (1 - fresh.sum(1, keepdim=True)).clamp(min=0) * whole).log()


# One processor for each setting, so that generations with the same share a batch.
repetition_aware = lru_cache(RepetitionAware)


class CosyVoiceSpeaker(Speaker):
    """CosyVoice 2 (arXiv 2412.10117): 25 codes a second. The voice is its flow's alone.

    A prompt is the beginning, the text's ids and the mark after which speech begins.
    """

    name = "CosyVoice 2"
    sampling: ClassVar = {"top_p": 0.8, "top_k": 25}

    def __init__(self, model: PreTrainedModel, processor: Reader, codec: Codec):
        super().__init__(model, processor, codec)
        self._control_tokens -= {*ADDED[3:]}
        speech = len(model.get_output_embeddings().weight)
        if codec.vocabulary_size != speech - MARKS:
            raise MmspecError(f"the codec has {codec.vocabulary_size} codes, and the model {speech - MARKS}")
        self._begin, self._speak, self._text = speech, speech + 1, speech + FRAME
        self.ends = frozenset({codec.vocabulary_size})

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: torch.dtype,
        codec: Codec | str | Path | None = None,
        **loading: Unpack[Loading],
    ) -> "CosyVoiceSpeaker":
        if (folder / "cosyvoice3.yaml").is_file():
            raise MmspecError(f"{folder} holds a CosyVoice 3, which is not supported: use CosyVoice 2")
        if isinstance(codec, str | Path):
            raise MmspecError(
                "CosyVoice 2 takes a codec as an object alone: give codec= in Python (docs/own-models.md)"
            )
        processor, model = cls.load_processor(folder), cls.load_model(folder, dtype, **loading)
        codes = len(model.lm_head.weight) - MARKS
        return cls(model, processor, codec or CodesOnly(codes, RATE, no_codec("cosyvoice2")))

    @classmethod
    def load_processor(cls, folder: Path) -> Reader:
        processor = load_processor(folder / COSYVOICE_TEXT)
        processor.add_tokens(list(ADDED), special_tokens=True)
        return processor

    @classmethod
    def load_model(cls, folder: Path, dtype: torch.dtype, **loading: Unpack[Loading]) -> PreTrainedModel:
        if loading:
            raise MmspecError(f"{cls.name} models are no models of transformers: leave {', '.join(loading)} out")
        try:
            config = Qwen2Config.from_pretrained(folder / COSYVOICE_TEXT)
            state = torch.load(folder / COSYVOICE, map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError) as error:
            raise MmspecError(f"{folder} does not load ({short(error)}): restore it from the model's source") from None
        return cosyvoice_model(config, state, dtype)

    def save(self, folder: Path, **options: object) -> None:
        torch.save(cosyvoice_state(self.model), folder / COSYVOICE)
        config = Qwen2Config(**self.model.config.to_diff_dict())
        config.vocab_size -= self._text
        config.save_pretrained(folder / COSYVOICE_TEXT)
        self.processor.save_pretrained(folder / COSYVOICE_TEXT)

    def target(self, weights_hash: str) -> CosyVoiceTarget:
        return CosyVoiceTarget(self.model, weights_hash)

    def read(self, text: str, voice: str, context: Any) -> list[int]:
        return [self._begin, *(self._text + number for number in self._ids(text)), self._speak]

    def _ids(self, text: str) -> Sequence[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def longest(self, text: str) -> int:
        return MOST * len(self._ids(text))

    def sampling_kwargs(self, given: dict[str, object]) -> dict[str, object]:
        """Top-p and top-k as those of repetition-aware sampling, unless another processor is given."""
        kwargs = super().sampling_kwargs(given)
        if "logits_processor" in kwargs:
            return kwargs
        processor = repetition_aware(kwargs["top_p"], kwargs["top_k"])
        return kwargs | {"logits_processor": (processor,), "top_p": 1.0, "top_k": 0}
