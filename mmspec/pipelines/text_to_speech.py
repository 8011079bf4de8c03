"""Text to speech: sentences as phonemes, a decoder-only model over codec tokens, a waveform."""

import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, RepetitionPenaltyLogitsProcessor

from mmspec import drafters, sound, zoo
from mmspec.accept import acceptance as rule_of
from mmspec.codecs.base import Codec, StreamDecoder
from mmspec.codecs.mel import MelCodec
from mmspec.decode import Stop, stream
from mmspec.errors import MmspecError, unknown
from mmspec.metrics import GenerationStats
from mmspec.pipelines.loading import HUB_OPTIONS, copy_companions, load_tokenizer
from mmspec.pipelines.request import row_seeds
from mmspec.placement import check_pair, dtype_of
from mmspec.reading import Reader, Sentence
from mmspec.sampling import Sampling
from mmspec.targets.causal import CausalTarget, Prompts

# New tokens before a chunk is decoded.
STEP = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """Audio that has just been verified and decoded; `sentence` is the number of the sentence it belongs to."""

    audio: Float[Tensor, "sample"]
    sentence: int


@dataclass(slots=True)
class TextToSpeechOutput:
    """A waveform in -1..1 and how it came about; lists have one entry for each sentence.

    `ended` says why each sentence ended: "end" (the model's own end token), "length" (longest duration for its text), "silence"
    or "loop" (detected and cut). `first_audio` is seconds until the first samples of a streamed call were there.
    """

    audio: Float[Tensor, "sample"]
    sampling_rate: int
    stats: list[GenerationStats]
    tokens: list[list[int]]
    sentences: list[Sentence]
    seeds: list[int]
    ended: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)
    first_audio: float = 0.0

    @property
    def seconds(self) -> float:
        """Duration of the audio."""
        return len(self.audio) / self.sampling_rate

    @property
    def total(self) -> GenerationStats:
        """Statistics of all sentences together, as of one row after the other."""
        return GenerationStats.sum(self.stats)

    def save(self, path: str | Path, **metadata: Any) -> None:
        """Write a .wav, .flac or .ogg file."""
        sound.check_output(Path(path))
        sound.save(self.audio, self.sampling_rate, Path(path), metadata)


class TextToSpeechPipeline:
    """Speaks with an autoregressive codec language model, drafted by `drafter` and verified by the model.

    >>> pipe = TextToSpeechPipeline.from_pretrained("wren-43", torch_dtype=torch.bfloat16)
    >>> pipe("Hello there.", seed=7).save("hello.wav")
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        transformer: PreTrainedModel,
        codec: Codec,
        voices: list[str],
        drafter: str = "jacobi",
        temperature: float = 1.0,
        tokens_per_phoneme: float = 6.0,
        silence: list[int] | None = None,
    ):
        self.tokenizer, self.transformer, self.codec = tokenizer, transformer, codec
        self.voices, self.drafter, self.temperature = voices, drafter, temperature
        self.tokens_per_phoneme, self.silence = tokens_per_phoneme, frozenset(silence or ())
        self.folder: Path | None = None
        self.interrupt = False
        self.reader = Reader(alphabet=set(tokenizer.get_vocab()))
        self._target: tuple[tuple, CausalTarget] | None = None

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "TextToSpeechPipeline":
        """Load a bundled name, a folder or a hub id; `torch_dtype` is the transformer's, the codec stays in float32."""
        folder = zoo.resolve(model, **{key: options.pop(key) for key in HUB_OPTIONS if key in options})
        dtype = dtype_of(options.pop("torch_dtype", None) or options.pop("dtype", None) or torch.float32)
        known = inspect.signature(cls.__init__).parameters.keys() - {"self"}
        for name in options.keys() - known:
            raise unknown("option of from_pretrained", name, [*known, *HUB_OPTIONS, "torch_dtype"])
        index = zoo.read_index(folder)
        if index.get("_class_name") != cls.__name__:
            raise MmspecError(f"{folder} holds a {index.get('_class_name')}, not a {cls.__name__}: give a text-to-speech model")
        parts: dict[str, Any] = {key: value for key, value in index.items() if key in known} | options
        parts["tokenizer"] = options.get("tokenizer") or load_tokenizer(folder)
        if "transformer" not in options:
            kind = getattr(transformers, str(index.get("transformer", ["", ""])[1]))
            parts["transformer"] = zoo.load_component(folder, "transformer", kind, dtype=dtype)
        if "codec" not in options:
            zoo.check_weights(folder / "codec" / "model.safetensors")
            parts["codec"] = MelCodec.from_pretrained(folder / "codec").float().eval()
        pipe = cls(**parts)
        pipe.folder = folder
        return pipe

    def save_pretrained(self, folder: str | Path) -> None:
        """Save all components and copy what else the model's folder holds: drafters, card, recipe."""
        goal = Path(folder)
        goal.mkdir(parents=True, exist_ok=True)
        copy_companions(self.folder, goal)
        self.tokenizer.save_pretrained(goal / "tokenizer")
        self.transformer.save_pretrained(goal / "transformer")
        self.codec.save_pretrained(goal / "codec")  # type: ignore[attr-defined]
        settings = ("voices", "drafter", "temperature", "tokens_per_phoneme")
        index = {
            "_class_name": type(self).__name__,
            "transformer": ["transformers", type(self.transformer).__name__],
            **{name: getattr(self, name) for name in settings},
            "silence": sorted(self.silence),
        }
        (goal / zoo.INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def to(self, device: Any = None, dtype: Any = None) -> "TextToSpeechPipeline":
        """Move to a device, and the transformer to a dtype; the codec always decodes in float32."""
        check_pair(torch.device(device or self.device), dtype_of(dtype or self.transformer.dtype))
        self.transformer.to(device=device, dtype=dtype)
        if device is not None:
            self.codec.to(device)  # type: ignore[attr-defined]
        return self

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def end(self) -> int:
        """The token that ends a sentence: the one after the codec's."""
        return self.codec.vocabulary

    @property
    def target(self) -> CausalTarget:
        """The transformer as the loop sees it, on its present device and in its present dtype."""
        model = self.transformer
        key = (id(model), model.device, model.dtype)
        if self._target is None or self._target[0] != key:
            name = zoo.weights_hash(self.folder / "transformer") if self.folder else ""
            self._target = key, CausalTarget(model, len(self.tokenizer), self.codec.vocabulary + 1, name)
        return self._target[1]

    def encode(self, phonemes: list[str], voice: str) -> Prompts:
        """Prompt ids of sentences that one voice speaks."""
        if voice not in self.voices:
            raise unknown("voice", voice, self.voices)
        return Prompts([list(self.tokenizer(f"<{voice}>{text}").input_ids) for text in phonemes])

    def longest(self, phonemes: str) -> int:
        """How many tokens a sentence may take."""
        return int(len(phonemes) * self.tokens_per_phoneme) + 20

    def stalled(self, tokens: list[int]) -> str:
        """ "silence" or "loop" if the last two seconds are nothing else, "" if not."""
        span = round(2 * self.codec.sampling_rate * self.codec.frame_tokens / self.codec.frame_samples)
        tail = tokens[-span:]
        if len(tail) < span:
            return ""
        if self.silence.issuperset(tail):
            return "silence"
        return "loop" if any(tail[period:] == tail[:-period] for period in range(1, span // 3 + 1)) else ""

    def stream(self, text: str, **options: Any) -> Iterator[Chunk]:
        """Speak chunk by chunk, as soon as tokens are verified; options are those of `__call__`. Setting `interrupt` ends it early."""
        return self._speak(*self._prepare(text, **options), chunked=True)

    def __call__(
        self,
        text: str,
        *,
        voice: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        drafter: Any = None,
        acceptance: Any = "exact",
        stream_to: Callable[[Tensor], Any] | None = None,
        callback: Callable[[int, int, list[int]], Any] | None = None,
    ) -> TextToSpeechOutput:
        """Speak a text, sentence by sentence.

        Args:
            voice: one of `voices`, the first if None.
            seed: sentence i uses seed + i; drawn if None. The same seed gives the same speech with any drafter.
            temperature, top_k, top_p, repetition_penalty: the sampling law; temperature 0 is greedy, the model's default if None.
            drafter: a name or an instance; "none" is plain autoregressive decoding, None the model's default.
            acceptance: exact, rejection, tolerance:τ or typical.
            stream_to: given each piece of audio as soon as it is there; pieces are then decoded one by one.
            callback: called as (sentence, sentences, tokens so far) after each round; it may set `interrupt`.
        """
        options: dict[str, Any] = dict(
            voice=voice, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty
        )
        out, job = self._prepare(text, drafter=drafter, acceptance=acceptance, **options)
        parts = []
        for chunk in self._speak(out, job, chunked=stream_to is not None):
            if stream_to and len(chunk.audio):
                stream_to(chunk.audio)
            if callback:
                callback(chunk.sentence, len(out.sentences), out.tokens[chunk.sentence])
            parts.append(chunk.audio)
        out.audio = torch.cat(parts)
        if not any(out.tokens):
            raise MmspecError(f"the model said nothing for {text!r} with seed {out.seeds[0]}: try another seed or a longer text")
        return out

    def _prepare(
        self,
        text: str,
        *,
        voice: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        drafter: Any = None,
        acceptance: Any = "exact",
    ) -> tuple[TextToSpeechOutput, dict[str, Any]]:
        """Everything checked before the first token: an empty output, and what the loop is given."""
        reading = self.reader.read(text)
        if not 0.0 < repetition_penalty <= 10.0:
            raise MmspecError(f"repetition_penalty={repetition_penalty} is out of range: give a number above 0 and up to 10 (1 is none)")
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(repetition_penalty)] if repetition_penalty != 1 else [])
        sampling = Sampling(self.temperature if temperature is None else temperature, top_k, top_p, processors=processors)
        seeds = row_seeds(seed, None, len(reading.sentences))
        prompts = [self.encode([one.phonemes], voice or self.voices[0]) for one in reading.sentences]
        longest = max(self.longest(one.phonemes) for one in reading.sentences)
        guesser = drafters.load(drafter if drafter is not None else self.drafter, self.folder, self.target, prompts[0], longest)
        out = TextToSpeechOutput(torch.zeros(0), self.codec.sampling_rate, [], [], reading.sentences, seeds, unsaid=reading.unsaid)
        return out, {"prompts": prompts, "drafter": guesser, "sampling": sampling, "rule": rule_of(acceptance)}

    def _speak(self, out: TextToSpeechOutput, job: dict[str, Any], chunked: bool) -> Iterator[Chunk]:
        """Fill `out` round by round. Chunks without `chunked` are empty but for the last of each sentence."""
        self.interrupt, began = False, perf_counter()
        prompts = job.pop("prompts")
        for number, (sentence, prompt, seed) in enumerate(zip(out.sentences, prompts, out.seeds, strict=True)):
            tokens: list[int] = []
            out.tokens.append(tokens)
            out.stats.append(GenerationStats())
            decoder, told = StreamDecoder(self.codec), 0
            stop = Stop(self.longest(sentence.phonemes), frozenset({self.end}), lambda row, so_far: bool(self.stalled(so_far)))
            rounds = stream(self.target, prompt, 1, stop, seeds=[seed], cancel=lambda: self.interrupt, stats=out.stats[-1], **job)
            for found in rounds:
                tokens += [token for token in found.tokens[0] if token != self.end]
                audio = torch.zeros(0)
                if chunked and len(tokens) - told >= STEP:
                    audio, told = decoder.push(tokens[told:]), len(tokens)
                    if len(audio) and not out.first_audio:
                        out.first_audio = perf_counter() - began
                yield Chunk(audio, number)
            why = "interrupted" if self.interrupt else "end" if found.tokens[0][-1] == self.end else self.stalled(tokens) or "length"
            out.ended.append(why)
            if why not in ("end", "interrupted"):
                warnings.warn(f"sentence {number + 1} did not end by itself ({why}): {sentence.text!r}; try another seed", stacklevel=2)
            audio = torch.cat([decoder.push(tokens[told:]), decoder.flush()])
            out.first_audio = out.first_audio or perf_counter() - began
            yield Chunk(sound.join([audio], [sentence.pause], out.sampling_rate), number)
            if self.interrupt:
                return
