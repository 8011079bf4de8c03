"""OuteTTS 1.0: words, how they sound, and DAC's codes in one stream of tokens."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, RepetitionPenaltyLogitsProcessor

from mmspec.codecs.base import Codec
from mmspec.codecs.hub import HubCodec
from mmspec.errors import MmspecError
from mmspec.pipelines.reference import Reference
from mmspec.pipelines.speaker import Reader, Speaker
from mmspec.targets.causal import CausalTarget

# How many tokens back the repetition penalty looks.
WINDOW = 64

# Characters that its prompts write plainly.
PLAIN = str.maketrans({"…": "...", "“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-"})

FEATURES = ("energy", "spectral_centroid", "pitch")


class RecentPenalty(LogitsProcessor):
    """transformers' repetition penalty for the last `WINDOW` tokens alone, with which OuteTTS is used."""

    def __init__(self, penalty: float):
        self.whole = RepetitionPenaltyLogitsProcessor(penalty)

    def __call__(
        self, input_ids: Int[Tensor, "row position"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        return self.whole(input_ids[:, -WINDOW:], scores) if input_ids.shape[1] else scores


# One processor for each penalty, so that generations with the same share a batch.
recent_penalty = lru_cache(RecentPenalty)


class OuteSpeaker(Speaker):
    """OuteTTS 1.0 (github.com/edwko/OuteTTS, interface version 3): DAC at 24 kHz, two codes a frame.

    The model writes each word, its duration, energy, spectral centroid and pitch, and pairs of `<|c1_N|>` and
    `<|c2_N|>`. Nothing is forced: its tokens are those of all its ids, and codes are what they hold. A reference is a
    speaker profile of the outetts package (.json), whose words come before those to be said.
    """

    name = "OuteTTS"
    # The repetition penalty is `RecentPenalty`'s.
    sampling: ClassVar = {"temperature": 0.4, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1}

    def __init__(self, model: PreTrainedModel, processor: Reader, codec: Codec):
        super().__init__(model, processor, codec)
        books = [[f"<|c{book}_{code}|>" for code in range(codec.vocabulary_size // 2)] for book in (1, 2)]
        self._books = [{number: code for code, number in enumerate(self.ids(*names))} for names in books]
        self.ids("<|text_start|>", "<|text_end|>", "<|audio_start|>", "<|word_start|>", "<|features|>", "<|code|>")
        eos = model.generation_config.eos_token_id
        own = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self.ends = frozenset({*self.ids("<|audio_end|>", "<|im_end|>"), *own})

    @classmethod
    def load_codec(cls, folder: Path, source: str | Path | None) -> Codec:
        return HubCodec.from_pretrained(cls.codec_folder(folder, source), codebooks=2)

    def target(self, weights_hash: str) -> CausalTarget:
        return CausalTarget(self.model, None, weights_hash)

    def codes(self, tokens: list[int]) -> list[int]:
        """Pairs of the i-th code of each codebook."""
        first, second = ([book[token] for token in tokens if token in book] for book in self._books)
        return [code for one, two in zip(first, second) for code in (one, two + self.codec.vocabulary_size // 2)]

    def longest(self, text: str) -> int:
        """Half as many tokens again as there are codes, for words and how they sound."""
        return super().longest(text) * 3 // 2

    def sampling_kwargs(self, given: dict[str, object]) -> dict[str, object]:
        """The repetition penalty as a processor, unless others are given."""
        kwargs = super().sampling_kwargs(given)
        if "logits_processor" in kwargs or kwargs["repetition_penalty"] == 1:
            return kwargs
        return kwargs | {"logits_processor": (recent_penalty(kwargs["repetition_penalty"]),), "repetition_penalty": 1.0}

    def listen(self, reference: Reference) -> dict:
        """A speaker profile."""
        if reference.path.suffix != ".json":
            raise MmspecError(
                f"{reference.path} is no speaker profile, which says when each word is heard: make one with the "
                "outetts package (create_speaker, save_speaker), and give its .json file"
            )
        try:
            profile = json.loads(reference.path.read_text())
            self._profile(profile)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise MmspecError(f"{reference.path} is no speaker profile of OuteTTS 1.0 ({error!r})") from None
        return profile

    def read(self, text: str, voice: str, context: dict | None) -> list[int]:
        text, said = plain(text), ""
        if context is not None:
            before = context["text"].strip()
            chinese = bool(re.search("[\u3040-\u30ff\u4e00-\u9fff]", before))
            ended = before[-1:] in (set("。？！?!") if chinese else set(".?!"))
            between = (("" if chinese else " ") if ended else "。" if chinese else ". ") if before else ""
            text, said = before + between + text, self._profile(context, between.strip()) + "\n<|word_start|>"
        prompt = f"<|im_start|>\n<|text_start|>{text}<|text_end|>\n<|audio_start|>\n{said}"
        return self.tokenizer.encode(prompt, add_special_tokens=False)

    def _profile(self, profile: dict, after: str = "") -> str:
        """The words of a profile as the model writes them; `after` is put after the last."""
        words = []
        for number, word in enumerate(profile["words"]):
            text = word["word"] + (after if number == len(profile["words"]) - 1 else "")
            sound = "".join(f"<|{name}_{word['features'].get(name, 0)}|>" for name in FEATURES)
            pairs = "".join(f"<|c1_{one}|><|c2_{two}|>" for one, two in zip(word["c1"], word["c2"], strict=True))
            duration = f"<|t_{word['duration']:.2f}|>"
            words.append(f"<|word_start|>{text}<|features|>{duration}{sound}<|code|>{pairs}<|word_end|>")
        profile["text"].strip()
        return "\n".join(words)


def plain(text: str) -> str:
    """A text as OuteTTS reads it: blanks as one space, plain quotes and dashes, no control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", re.sub(r"\s+", " ", text).translate(PLAIN).strip())
