"""Speech language models that are Llamas whose tokenizer names the codes: Orpheus and Llasa."""

from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from mmspec.codecs.base import Codec
from mmspec.codecs.snac import SnacCodec
from mmspec.errors import MmspecError
from mmspec.pipelines.reference import Reference
from mmspec.pipelines.speaker import Reader, Speaker
from mmspec.targets.speech import SpeechTarget


class OrpheusSpeaker(Speaker):
    """Orpheus (Canopy Labs, github.com/canopyai/Orpheus-TTS): SNAC at 24 kHz, seven codes a frame.

    Code c of a frame's slot s is `<custom_token_N>` with N = 10 + 4096 s + c. A prompt is `<custom_token_3>`,
    "voice: text" with the tokenizer's beginning of a text, `<|eot_id|>`, and `<custom_token_4>`, `<custom_token_5>` and
    `<custom_token_1>`, after which speech begins; `<custom_token_2>` ends it.
    """

    name = "Orpheus"
    sampling: ClassVar = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    codec_id = "hubertsiuzdak/snac_24khz"
    open_voices = True
    # Those of the released models: English, then French, German, Korean, Hindi, Mandarin, Spanish and Italian.
    voices = (
        *("tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe"),
        *("pierre", "amelie", "marie", "jana", "thomas", "max", "유나", "준서", "ऋतिका", "长乐", "白芷"),
        *("javi", "sergio", "maria", "pietro", "giulia", "carlo"),
    )

    def __init__(self, model: PreTrainedModel, processor: Reader, codec: Codec):
        super().__init__(model, processor, codec)
        self._begin, *self._close = self.ids(
            *("<custom_token_3>", "<|eot_id|>", "<custom_token_4>", "<custom_token_5>", "<custom_token_1>")
        )
        end, first = self.ids("<custom_token_2>", "<custom_token_10>")
        if not isinstance(codec, SnacCodec):
            raise MmspecError(f"the codec is a {type(codec).__name__}, and Orpheus speaks with SNAC: give a SNAC")
        rows, count = model.get_output_embeddings().weight.shape[0], codec.vocabulary_size
        if first + count > rows:
            raise MmspecError(
                f"the model has {rows} tokens, and SNAC's {count} codes begin at {first}: give the model's own codec"
            )
        self._codes, self._end = range(first, first + count), end
        self.ends = frozenset({count})

    @classmethod
    def load_codec(cls, folder: Path, source: str | Path | None) -> Codec:
        return SnacCodec.from_pretrained(cls.codec_folder(folder, source))

    def target(self, weights_hash: str) -> SpeechTarget:
        return SpeechTarget(self.model, self._codes, self._end, self.codec.frame_tokens, weights_hash=weights_hash)

    def read(self, text: str, voice: str, context: Any) -> list[int]:
        return [self._begin, *self.tokenizer(f"{voice}: {text}").input_ids, *self._close]


class LlasaSpeaker(Speaker):
    """Llasa (Ye et al. 2025, arXiv 2502.04128; HKUSTAudio on the hub): X-Codec 2, one code a frame.

    Code c is `<|s_c|>`. A prompt is the tokenizer's chat template of the text and of an answer that has begun. A
    reference is its text before the text, and its codes at the beginning of the answer; the speech goes on from it.
    """

    name = "Llasa"
    sampling: ClassVar = {"temperature": 0.8}
    codec_id = "hf-audio/xcodec2"
    longest_text = 400

    def __init__(self, model: PreTrainedModel, processor: Reader, codec: Codec):
        super().__init__(model, processor, codec)
        if not getattr(self.tokenizer, "chat_template", None):
            raise MmspecError("the tokenizer has no chat template, with which Llasa reads: restore its files")
        self._codes = self.ids(*(f"<|s_{code}|>" for code in range(codec.vocabulary_size)))
        (self._end,) = self.ids("<|SPEECH_GENERATION_END|>")
        self.ids("<|SPEECH_GENERATION_START|>", "<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>")
        self.ends = frozenset({codec.vocabulary_size})

    def target(self, weights_hash: str) -> SpeechTarget:
        return SpeechTarget(self.model, self._codes, self._end, weights_hash=weights_hash)

    def listen(self, reference: Reference) -> tuple[str, list[int]]:
        """What is said in a recording, and its codes."""
        if not reference.text.strip():
            raise MmspecError(
                "Llasa needs what is said in the reference: give --reference-text, or Reference(path, text) in Python"
            )
        return reference.text.strip(), self.codec.encode(*reference.audio())[0].tolist()

    def read(self, text: str, voice: str, context: tuple[str, list[int]] | None) -> list[int]:
        said, codes = context or ("", [])
        text = f"{said} {text}".strip()
        chat = [
            {
                "role": "user",
                "content": f"Convert the text to speech:<|TEXT_UNDERSTANDING_START|>{text}<|TEXT_UNDERSTANDING_END|>",
            },
            {"role": "assistant", "content": "<|SPEECH_GENERATION_START|>"},
        ]
        options = {"tokenize": True, "continue_final_message": True, "return_dict": True}
        ids = self.tokenizer.apply_chat_template(chat, **options)["input_ids"]
        return [*ids, *(self._codes[code] for code in codes)]
