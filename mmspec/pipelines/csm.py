"""CSM as a speaker: texts and recordings by its processor's chat template, sound by the Mimi inside the model."""

from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
import torchaudio
from transformers import PreTrainedModel

from mmspec.codecs.base import Codec
from mmspec.codecs.hub import HubCodec
from mmspec.errors import MmspecError
from mmspec.pipelines.loading import Loading
from mmspec.pipelines.reference import Reference
from mmspec.pipelines.speaker import Speaker
from mmspec.targets.csm import CsmTarget
from mmspec.targets.vision_language import VisualPrompts


class CsmSpeaker(Speaker):
    """CSM (Sesame, github.com/SesameAILabs/csm): Mimi at 24 kHz, 32 codes a frame, the first from a backbone.

    Voices are numbers of speakers, the roles of its chat template, that it makes up anew for each seed; a recording
    before the text, said by the same number, gives one its voice. A frame of zeros, but for its last code, ends a text.
    """

    name = "CSM"
    # Those of its first implementation, by its authors.
    sampling: ClassVar = {"temperature": 0.9, "top_k": 50}
    voices = ("0", "1")

    def __init__(self, model: PreTrainedModel, processor: Any, codec: Codec):
        super().__init__(model, processor, codec)
        if not getattr(processor, "chat_template", None):
            raise MmspecError("the processor has no chat template, with which CSM reads: restore its files")
        self.position_tokens: int = model.config.num_codebooks
        if codec.frame_tokens != self.position_tokens:
            raise MmspecError(
                f"the codec has {codec.frame_tokens} codes a frame, and CSM says {self.position_tokens}: leave it out"
            )
        self._codebook_size = codec.vocabulary_size // codec.frame_tokens
        self.ends = frozenset()

    @classmethod
    def load(
        cls, folder: Path, dtype: torch.dtype, codec: Codec | str | Path | None = None, **loading: Unpack[Loading]
    ) -> Self:
        processor, model = cls.load_processor(folder), cls.load_model(folder, dtype, **loading)
        if codec is None:
            codec = HubCodec(model.codec_model.float(), model.config.num_codebooks)
        elif isinstance(codec, str | Path):
            codec = cls.load_codec(folder, codec)
        return cls(model, processor, codec)

    def target(self, weights_hash: str) -> CsmTarget:
        return CsmTarget(self.model, weights_hash=weights_hash)

    def takes_voice(self, voice: str) -> bool:
        return voice.isdecimal()

    def listen(self, reference: Reference) -> tuple[str, torch.Tensor]:
        """What is said in a recording, and its samples at the codec's rate."""
        if not reference.text.strip():
            raise MmspecError(
                "CSM needs what is said in the reference: give --reference-text, or Reference(path, text) in Python"
            )
        samples, rate = reference.audio()
        return reference.text.strip(), torchaudio.functional.resample(samples, rate, self.codec.sampling_rate)[0]

    def read(self, text: str, voice: str, context: tuple[str, torch.Tensor] | None) -> list[int]:
        return self._inputs(text, voice, context)["input_ids"][0].tolist()

    def encode(self, texts: list[str], voices: list[str], reference: Reference | None = None) -> VisualPrompts:
        prompts = super().encode(texts, voices, reference)
        heard: dict[str, torch.Tensor] = {}
        if reference is not None:
            inputs = self._inputs(texts[0], voices[0], self.listen(reference))
            heard = {name: inputs[name] for name in ("input_values", "input_values_cutoffs")}
        return VisualPrompts(prompts.conditional, images=[heard] * len(texts))

    def _inputs(self, text: str, voice: str, context: tuple[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """What the processor makes of a text, and of what was said before it."""
        turns: list[dict] = [{"role": voice, "content": [{"type": "text", "text": text}]}]
        if context:
            sound = {"type": "audio", "path": context[1].float().numpy()}
            turns.insert(0, {"role": voice, "content": [{"type": "text", "text": context[0]}, sound]})
        return self.processor.apply_chat_template(turns, tokenize=True, return_dict=True)

    def over(self, tokens: list[int]) -> bool:
        width, end = self.position_tokens, self.model.config.codebook_eos_token_id
        return len(tokens) % width == 0 and set(tokens[-width:-1]) == {end}

    def codes(self, tokens: list[int]) -> list[int]:
        width, size = self.position_tokens, self._codebook_size
        codes: list[int] = []
        for start in range(0, len(tokens) - width + 1, width):
            frame = tokens[start : start + width]
            if self.over(frame):
                break
            # Ids beyond the codec's codes are marks, which a trained model does not say.
            codes += [min(code, size - 1) + book * size for book, code in enumerate(frame)]
        return codes

    def longest(self, text: str) -> int:
        return -(-super().longest(text) // self.position_tokens) * self.position_tokens
