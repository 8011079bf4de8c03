"""Text to speech: sentences as phonemes, a decoder-only model over codec tokens, a waveform."""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import torch
import transformers
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmspec import files, zoo
from mmspec.codecs.base import Codec, StreamDecoder
from mmspec.codecs.hub import HubCodec, family_of
from mmspec.codecs.mel import MelCodec
from mmspec.engine.accept import acceptance as rule_of
from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError, unknown
from mmspec.media import audio as sound
from mmspec.pipelines.base import TransformerPipeline
from mmspec.pipelines.loading import TOKENIZER_LOCK, copy_companions, load_tokenizer, opened, rename_target
from mmspec.pipelines.phonemize import Reader, Sentence
from mmspec.pipelines.request import row_seeds
from mmspec.pipelines.solo import Run
from mmspec.targets.causal import Prompts
from mmspec.targets.speech import SpeechTarget, phoneme_ids

# Seconds of new speech in a piece, and in a sentence's first one: less is heard sooner, and decodes more context for each sample.
PIECE, FIRST = 0.6, 0.3

SETTINGS: dict[str, Any] = {
    "voices": list,
    "drafter": str,
    "temperature": (int, float),
    "tokens_per_phoneme": (int, float),
    "longest_sentence": int,
    "silence": list,
    "interleaved": bool,
}


@dataclass(slots=True)
class TextToSpeechOutput:
    """A waveform in -1..1 and how it came about; lists have one entry for each sentence (that has begun).

    `tokens` are the codec's, and `rounds` says how many of them each round brought: drafted ones, and the bonus.
    `ended` says why each sentence ended: "end" (the model's own end token), "length" (longest duration for its text), "silence"
    or "loop" (two seconds of nothing else), "interrupted". `unsaid` are characters that were left out. `first_audio` is seconds from
    the call to the first samples, less those for loading a drafter.
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

    def save(self, path: str | Path, **metadata: Any) -> None:
        """Write a .wav, .flac or .ogg file; its comment says as JSON how it came about (`lossless`, seed, ...), and the metadata."""
        files.check_output(Path(path), sound.KINDS)
        facts = metadata | self.total.facts | {"seed": self.seeds[0], "ended": self.ended}
        sound.save(self.audio, self.sampling_rate, Path(path), facts)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Audio that was just verified and decoded, of the sentence with that number; `output` is all that is there so far."""

    audio: Float[Tensor, "sample"]
    sentence: int
    output: TextToSpeechOutput


class TextToSpeechPipeline(TransformerPipeline[SpeechTarget]):
    """Speaks with an autoregressive codec language model, drafted by `drafter` and verified by the model.

    >>> pipe = TextToSpeechPipeline.from_pretrained("wren-86", torch_dtype=torch.bfloat16)
    >>> pipe("Hello there.", seed=7).save("hello.wav")

    `codec` is a `MelCodec`, a `HubCodec`, or anything that follows `codecs.base.Codec` (which speaks, but is not saved). `voices` are
    those that the tokenizer has a token `<voice>` for. `tokens_per_phoneme` bounds how long a sentence may become, and sentences of more
    phonemes than `longest_sentence` are said in parts; tokens in `silence` are silent. An `interleaved` model says where each phoneme begins
    (`SpeechTarget`).
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
        longest_sentence: int = 180,
        silence: list[int] | None = None,
        interleaved: bool = False,
    ):
        if not isinstance(codec, Codec):
            raise MmspecError(
                f"codec is a {type(codec).__name__}, which is no codec: give a MelCodec, or HubCodec(model) for one of transformers"
            )
        known = tokenizer.get_vocab()
        missing = [voice for voice in voices if f"<{voice}>" not in known]
        if missing or not voices:
            raise MmspecError(
                f"the tokenizer has no token <{missing[0]}>: name its voices"
                if missing
                else "voices is empty: name at least one"
            )
        wanted, has = (
            len(tokenizer) + codec.vocabulary_size + 1 + interleaved,
            transformer.get_output_embeddings().weight.shape[0],
        )
        if has != wanted:
            raise MmspecError(
                f"the transformer has {has} tokens, but the tokenizer's {len(tokenizer)}, the codec's {codec.vocabulary_size} and the end"
                f"{' and the mark' if interleaved else ''} are {wanted}: give parts of one model"
            )
        if interleaved and codec.frame_tokens > 1:
            raise MmspecError(
                f"interleaved is set, and the codec has {codec.frame_tokens} tokens a frame: give one of a single token, or leave it out"
            )
        super().__init__(transformer)
        self.tokenizer, self.codec = tokenizer, codec
        self.voices, self.drafter, self.temperature = voices, drafter, temperature
        self.tokens_per_phoneme, self.longest_sentence = tokens_per_phoneme, longest_sentence
        self.silence, self.interleaved = frozenset(silence or ()), interleaved

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "TextToSpeechPipeline":
        """Load a bundled name, a folder or a hub id; `torch_dtype` (or `dtype`) is the transformer's, the codec stays in float32.

        Components and settings of `__init__` may be given instead of loaded; options that cannot be honoured are refused.
        """
        folder, dtype, index = opened(cls, "a text-to-speech", model, options)
        path = folder / zoo.INDEX
        for name, kind in SETTINGS.items():
            if not isinstance(index.get(name), kind) and name not in options and (name in index or name == "voices"):
                raise MmspecError(f"{path}: {name} is {index.get(name)!r}: restore it from the model's source")
        parts: dict[str, Any] = {name: index[name] for name in SETTINGS if name in index} | options
        if "tokenizer" not in parts:
            parts["tokenizer"] = load_tokenizer(folder)
        if "transformer" not in parts:
            given = index.get("transformer")
            found = getattr(transformers, str(given[-1]), None) if isinstance(given, list) and given else None
            if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
                raise MmspecError(f"{path}: transformer is {given}, which is no model class of transformers")
            parts["transformer"] = zoo.load_component(folder, "transformer", found, dtype=dtype)
        if "codec" not in parts:
            parts["codec"] = load_codec(folder, index.get("codec"))
        try:
            pipe = cls(**parts)
        except (ValueError, TypeError, AttributeError) as error:
            raise MmspecError(f"{path}: {error}") from None
        pipe.folder = folder
        return pipe

    def save_pretrained(self, folder: str | Path) -> None:
        """Save all components and copy what else the model's folder holds: drafters, card, recipe.

        A codec that is neither a `MelCodec` nor a `HubCodec` cannot be saved.
        """
        if not isinstance(self.codec, MelCodec | HubCodec):
            raise MmspecError(
                f"a {type(self.codec).__name__} cannot be saved: save the parts yourself, and give codec= to from_pretrained"
            )
        goal = Path(folder)
        goal.mkdir(parents=True, exist_ok=True)
        copy_companions(self.folder, goal)
        self.tokenizer.save_pretrained(goal / "tokenizer")
        self.transformer.save_pretrained(goal / "transformer")
        index: dict[str, Any] = {
            "_class_name": type(self).__name__,
            "transformer": ["transformers", type(self.transformer).__name__],
            **{name: getattr(self, name) for name in SETTINGS},
            "silence": sorted(self.silence),
        }
        if isinstance(self.codec, HubCodec):
            self.codec.model.save_pretrained(goal / "codec")
            index["codec"] = {"codebooks": self.codec.frame_tokens, "context": self.codec.context}
        else:
            self.codec.save_pretrained(goal / "codec")
            (goal / "codec" / "README.md").unlink(missing_ok=True)  # the hub's empty card
        (goal / zoo.INDEX).write_text(json.dumps(index, indent=2) + "\n")
        rename_target(goal, self.target.weights_hash)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device, and the transformer to a dtype; the codec keeps its own."""
        network = getattr(self.codec, "model", self.codec)
        super().to(*args, **kwargs)
        if isinstance(network, nn.Module):
            network.to(device=self.device)
        return self

    def build_target(self, weights_hash: str) -> SpeechTarget:
        first, codec = len(self.tokenizer), self.codec
        end = first + codec.vocabulary_size
        return SpeechTarget(
            self.transformer,
            range(first, end),
            end,
            codec.frame_tokens,
            boundary=end + 1 if self.interleaved else None,
            phonemes=phoneme_ids(self.tokenizer) if self.interleaved else frozenset(),
            weights_hash=weights_hash,
        )

    @property
    def end(self) -> int:
        """The token that ends a sentence: the one after the codec's."""
        return self.codec.vocabulary_size

    def codes(self, tokens: list[int]) -> list[int]:
        """The codec's tokens among those of the model."""
        end = self.end
        return [token for token in tokens if 0 <= token < end]

    @cached_property
    def reader(self) -> Reader:
        """Reads text in sentences that the model has learnt to say and has the positions for."""
        room = int((self.target.max_positions - self.spare - 4) / (1 + self.tokens_per_phoneme))
        return Reader(self.tokenizer.get_vocab(), min(self.longest_sentence, room))

    def encode(self, phonemes: list[str], voice: str) -> Prompts:
        """Prompt ids of sentences that one voice speaks."""
        if voice not in self.voices:
            raise unknown("voice", voice, self.voices)
        with TOKENIZER_LOCK:
            return Prompts([list(self.tokenizer(f"<{voice}>{text}").input_ids) for text in phonemes])

    def rows(self, asked: list[dict]) -> tuple[Prompts, Stop]:
        """What the loop is given for lines of `prompts.jsonl` as rows of one batch, each as one sentence; and when a row ends. Voices
        take turns where a line names none."""
        phonemes = [" ".join(one.phonemes for one in self.reader.read(row["prompt"]).sentences) for row in asked]
        voices = [row.get("voice") or self.voices[i % len(self.voices)] for i, row in enumerate(asked)]
        prompts = [self.encode([text], voice).conditional[0] for text, voice in zip(phonemes, voices)]
        return Prompts(prompts), self.stop(max(map(self.longest, phonemes)))

    def stop(self, length: int) -> Stop:
        """A sentence ends with its end token, after `length` tokens, or when it has stalled."""
        return Stop(
            length,
            frozenset({self.end}),
            lambda row, so_far: bool(self.stalled(self.codes(so_far[-2 * self.patience :]))),
        )

    def longest(self, phonemes: str) -> int:
        """How many tokens a sentence may take."""
        return int(len(phonemes) * self.tokens_per_phoneme) + self.spare

    @property
    def spare(self) -> int:
        """Tokens that a sentence may take beside those of its phonemes: a second's, most of which a single short word needs."""
        return self.patience // 2

    def due(self, told: int, piece: float = PIECE) -> int:
        """New codec tokens to wait for before the next piece of a sentence is decoded, `told` of whose have been; the first one waits for
        its right context too."""
        width = self.codec.frame_tokens
        frames = min(piece, piece if told else FIRST) * self.codec.sampling_rate / self.codec.frame_samples
        return width * (max(1, round(frames)) + (0 if told else self.codec.context[1]))

    @cached_property
    def patience(self) -> int:
        """Codec tokens of two seconds."""
        return round(2 * self.codec.sampling_rate * self.codec.frame_tokens / self.codec.frame_samples)

    def stalled(self, tokens: list[int]) -> str:
        """ "silence" if the codec tokens of the last two seconds are silent, "loop" if they say one thing three times or more, else ""."""
        span = self.patience
        tail = tokens[-span:]
        if len(tail) < span:
            return ""
        if self.silence.issuperset(tail):
            return "silence"
        periods = (period for period in range(1, span // 3 + 1) if tail[-1 - period] == tail[-1])
        return "loop" if any(tail[period:] == tail[:-period] for period in periods) else ""

    def stream(
        self,
        text: str,
        *,
        voice: str | None = None,
        seed: int | list[int] | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        drafter: Any = None,
        acceptance: Any = "exact",
        callback: Callable[[TextToSpeechOutput], Any] | None = None,
        piece: float | None = PIECE,
    ) -> Iterator[Chunk]:
        """Speak chunk by chunk, as soon as tokens are verified and their right context is there; see `__call__` for the arguments.

        A chunk is decoded when there are `piece` seconds of new speech (the first of a sentence sooner), or when its sentence has ended if
        None. The last chunk of a sentence brings its pause, and may be empty. Closing the iterator, or setting `interrupt`, ends it early.
        """
        self.interrupt = False
        began = perf_counter()
        if not isinstance(text, str):
            raise MmspecError(f"text must be a string, not {type(text).__name__}")
        if piece is not None and not (isinstance(piece, int | float) and piece > 0):
            raise MmspecError(f"piece={piece}: give the seconds of a chunk, more than 0, or None for whole sentences")
        law = (self.temperature if temperature is None else temperature, top_k, top_p)
        sampling = SamplingOptions(*law, repetition_penalty=repetition_penalty)
        rule, chosen = rule_of(acceptance), self.drafter if drafter is None else drafter
        with TOKENIZER_LOCK:
            reading = self.reader.read(text)
        seeds = row_seeds(seed, None, len(reading.sentences), "sentences")
        prompts = [self.encode([one.phonemes], self.voices[0] if voice is None else voice) for one in reading.sentences]
        longest = max(self.longest(one.phonemes) for one in reading.sentences)
        spent = perf_counter() - began
        run = self.loop(self, chosen, prompts[0], longest)
        began = perf_counter() - spent  # loading a drafter and measuring passes, once, are not counted
        out = TextToSpeechOutput(self.codec.sampling_rate, reading.sentences, seeds, reading.unsaid)

        def speak() -> Iterator[Chunk]:
            held: list[Chunk] = []  # pauses: sound begins with the first token, since no token at all is an error
            for number, prompt in enumerate(prompts):
                for audio in self._say(out, number, run, prompt, piece, callback, sampling=sampling, rule=rule):
                    if len(audio) and out.tokens[number] and not out.first_audio:
                        out.first_audio = perf_counter() - began
                    out.parts.append(audio)
                    held.append(Chunk(audio, number, out))
                    if any(out.tokens):
                        yield from held
                        held.clear()
                if self.interrupt:
                    break
            if not any(out.tokens) and not self.interrupt:
                raise MmspecError(
                    f"the model said nothing for {text!r} with seed {seeds[0]}: try another seed or a longer text"
                )
            yield from held

        return speak()

    def _say(
        self,
        out: TextToSpeechOutput,
        number: int,
        run: Run,
        prompt: Prompts,
        piece: float | None,
        callback: Any,
        **options: Any,
    ) -> Iterator[Tensor]:
        """One sentence, piece by piece; the last piece always comes, with the pause after it."""
        sentence, seed = out.sentences[number], out.seeds[number]
        tokens: list[int] = []
        rounds: list[tuple[int, int]] = []
        stats, decoder, told, last = GenerationStats(), StreamDecoder(self.codec), 0, -1
        out.tokens.append(tokens)
        out.rounds.append(rounds)
        out.stats.append(stats)
        length = self.longest(sentence.phonemes)
        stop = self.stop(length)
        for found in run(prompt, 1, stop, seeds=[seed], cancel=lambda: self.interrupt, stats=stats, **options):
            *drafted, last = found.tokens[0]
            fresh, bonus = self.codes(drafted), self.codes([last])
            tokens += fresh + bonus
            rounds.append((len(fresh), len(bonus)))
            if callback:
                callback(out)
            if piece is not None and len(tokens) - told >= self.due(told, piece):
                audio, told = decoder.push(tokens[told:]), len(tokens)
                if len(audio):
                    yield audio.float().clone()
        why = (
            "end"
            if last == self.end
            else self.stalled(tokens) or ("length" if stats.tokens == length else "interrupted")
        )
        out.ended.append(why)
        trouble = "came out empty" if not tokens else f"did not end by itself ({why})" if why != "end" else ""
        if trouble and why != "interrupted" and (tokens or len(out.sentences) > 1):  # nothing at all is an error
            shown = sentence.text if len(sentence.text) < 60 else f"{sentence.text[:57]}..."
            warnings.warn(f"sentence {number + 1} {trouble}: {shown!r}; try another seed", stacklevel=1)
        yield sound.join(
            [decoder.flush(tokens[told:]).float()], [0.0 if why == "interrupted" else sentence.pause], out.sampling_rate
        )

    def __call__(
        self,
        text: str,
        *,
        voice: str | None = None,
        seed: int | list[int] | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        drafter: Any = None,
        acceptance: Any = "exact",
        stream_to: Callable[[Tensor], Any] | None = None,
        callback: Callable[[TextToSpeechOutput], Any] | None = None,
    ) -> TextToSpeechOutput:
        """Speak a text, sentence by sentence.

        Args:
            voice: one of `voices`, the first if None.
            seed: sentence i uses seed + i; a list gives each its own; drawn if None. The same seed gives the same speech with any drafter.
            temperature, top_k, top_p, repetition_penalty: the sampling law; temperature 0 is greedy, the model's default if None.
            drafter: a name or an instance; "none" is plain autoregressive decoding, None the model's default.
            acceptance: exact, rejection (lossless in law); tolerance:τ with τ > 1 and typical are LOSSY, and the statistics say so.
            stream_to: given each piece of audio as soon as it is there; without it, a sentence is decoded in one piece.
            callback: given the output so far after each round; it may set `interrupt` to stop, and what was said is kept.
        """
        law: dict[str, Any] = dict(
            temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty
        )
        how: dict[str, Any] = dict(
            drafter=drafter, acceptance=acceptance, callback=callback, piece=PIECE if stream_to else None
        )
        for chunk in self.stream(text, voice=voice, seed=seed, **law, **how):
            if stream_to and len(chunk.audio):
                stream_to(chunk.audio)
        return chunk.output


def load_codec(folder: Path, options: Any) -> Codec:
    """A model folder's codec in float32: a model of transformers, with `options` of `HubCodec`, or the bundled kind."""
    path = folder / "codec"
    try:
        config = json.loads((path / "config.json").read_text())
        kind = str(config.get("model_type") or "")
    except (OSError, ValueError, AttributeError) as error:
        raise MmspecError(
            f"{path / 'config.json'} cannot be read ({error}): restore it from the model's source"
        ) from None
    if kind:
        model = zoo.load_component(folder, "codec", getattr(transformers, family_of(kind).kind), dtype=torch.float32)
        try:
            return HubCodec(model, options["codebooks"], tuple(options["context"]))
        except (TypeError, KeyError):
            raise MmspecError(
                f"{folder / zoo.INDEX}: codec is {options!r}, not its codebooks and context: restore the file"
            ) from None
    weights = path / "model.safetensors"
    zoo.check_weights(weights)
    try:
        codec = MelCodec(**config)
        codec.load_state_dict(load_file(weights))
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MmspecError(
            f"{weights} holds the weights of another model than {path / 'config.json'} describes ({reason}): restore them"
        ) from None
    return codec.eval()
