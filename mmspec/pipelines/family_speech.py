"""Text to speech with a speech language model that people bring: a folder of transformers, or a hub id."""

from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from mmspec.engine.loop import Stop
from mmspec.errors import MmspecError
from mmspec.pipelines.families import check_speaker, speaker_class
from mmspec.pipelines.generation_config import warn_of_others
from mmspec.pipelines.loading import Loading, open_folder, pop_loading
from mmspec.pipelines.phonemize import PhonemizedText
from mmspec.pipelines.sentences import read_plainly
from mmspec.pipelines.speaker import Reference, Speaker
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget


class FamilySpeechPipeline(TextToSpeechPipeline):
    """Speaks plain text with a speech language model by its own template and codec (`pipelines.speaker`).

    >>> pipe = mmspec.pipeline("text-to-speech", "canopylabs/orpheus-3b-0.1-ft")
    >>> pipe("Hello there.", voice="tara", seed=7).save("hello.wav")

    Temperature, top-p and penalties are those of its `generation_config.json`, else those of its authors, unless given.
    """

    parts = ("speaker",)
    settings: ClassVar = {"drafter": str, "temperature": (int, float), "voices": list}
    required = ()
    allow_transformers = True

    def __init__(
        self,
        speaker: Speaker,
        drafter: str = "jacobi",
        temperature: float | None = None,
        voices: list[str] | None = None,
    ):
        self.speaker, self.transformer, self.codec = speaker, speaker.model, speaker.codec
        self.speaker.voices = self.voices = list(voices or speaker.voices)
        self.drafter, self.silence = drafter, frozenset()
        warn_of_others(speaker.model.generation_config.to_dict())
        self.temperature = cast(float, speaker.defaults["temperature"]) if temperature is None else temperature
        self._begin()

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "FamilySpeechPipeline":
        """Load a folder of transformers or a hub id; `codec` is one, or where one is, in the place of the model's."""
        codec = options.pop("codec", None)
        loading = pop_loading(options)
        folder, dtype, _ = open_folder(cls, model, options, loading)
        family = check_speaker(folder)  # refused by name, before any weights are read
        speaker = options.pop("speaker", None) or speaker_class(family).load(folder, dtype, codec, **loading)
        pipe = cls(speaker, **options)
        pipe.folder = folder
        return pipe

    @classmethod
    def load_parts(cls, folder: Path, index: dict, dtype: torch.dtype, components: dict, loading: Loading) -> dict:
        return {"speaker": speaker_class(check_speaker(folder)).load(folder, dtype, **loading)}

    def describe_parts(self) -> None:  # type: ignore[override]
        """It has no index: it is a folder of transformers."""

    def save_parts(self, folder: Path, **options: object) -> None:
        self.speaker.save(folder, **options)

    def build_target(self, weights_hash: str) -> CausalTarget:  # type: ignore[override]
        return self.speaker.target(weights_hash)

    @property
    def sampling_defaults(self) -> dict[str, object]:
        return self.speaker.defaults | {"temperature": self.temperature}

    def sampling_kwargs(self, given: dict[str, object]) -> dict[str, object]:
        return self.speaker.sampling_kwargs({"temperature": self.temperature} | given)

    @property
    def end(self) -> int | None:  # type: ignore[override]
        return min(self.ends, default=None)

    @property
    def ends(self) -> frozenset[int]:
        return self.speaker.ends

    def over(self, tokens: list[int]) -> bool:
        return self.speaker.over(tokens)

    def stop(self, length: int) -> Stop:
        stop, whole = super().stop(length), self.speaker.position_tokens
        if whole == 1:
            return stop
        stalled = stop.when
        assert stalled is not None
        # Only whole frames say what they sound like.
        return Stop(
            length, when=lambda row, tokens: not len(tokens) % whole and (self.over(tokens) or stalled(row, tokens))
        )

    def room(self, prompts: Prompts) -> int:
        return super().room(prompts) * self.speaker.position_tokens

    def codes(self, tokens: list[int]) -> list[int]:
        return self.speaker.codes(tokens)

    def takes_voice(self, voice: str) -> bool:
        return self.speaker.takes_voice(voice)

    def read(self, text: str) -> PhonemizedText:
        return read_plainly(text, self.speaker.longest_text)

    def encode(self, phonemes: list[str], voice: str, reference: Reference | None = None) -> Prompts:
        """Prompts of plain texts that one voice speaks, or that of a recording."""
        return self._encode(phonemes, [voice] * len(phonemes), reference)

    def _encode(self, texts: list[str], voices: list[str], reference: Reference | None = None) -> Prompts:
        with self._tokenizer_lock:
            prompts = self.speaker.encode(texts, voices, reference)
        if self.room(prompts) < self.stall.window:
            raise MmspecError(
                f"a prompt takes {max(map(len, prompts.conditional))} of the model's {self.target.max_positions} "
                "positions, which leaves no room for speech: give a shorter reference"
            )
        return prompts

    def encode_examples(self, rows: list[dict]) -> tuple[Prompts, Stop]:
        """See `Pipeline`; of a line of more than one piece, the first is spoken."""
        texts = [self.read(row["prompt"]).sentences[0].phonemes for row in rows]
        voices = [row.get("voice") or self.voices[i % len(self.voices)] for i, row in enumerate(rows)]
        prompts = self._encode(texts, voices)
        return prompts, self.stop(min(self.room(prompts), max(map(self.longest, texts))))

    def longest(self, phonemes: str) -> int:
        """The maximum number of tokens of a text; what is left of the model's positions may be fewer."""
        return self.speaker.longest(phonemes)
