"""Text to speech: sentences as phonemes, a decoder-only model over codec tokens, a waveform."""

import warnings
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Literal, Self, Unpack, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmspec import zoo
from mmspec.codecs import registry
from mmspec.codecs.base import Codec, StreamDecoder
from mmspec.codecs.codes import CodesOnly
from mmspec.engine.accept import AcceptanceRule
from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError, unknown
from mmspec.media import audio as sound
from mmspec.pipelines import check_task
from mmspec.pipelines.base import (
    GenerateOptions,
    Pipeline,
    StepCallback,
    deprecated_callback,
    load_transformer,
)
from mmspec.pipelines.endings import StallDetector
from mmspec.pipelines.loading import HUB_OPTIONS, Loading, load_tokenizer
from mmspec.pipelines.outputs import AudioChunk, TextToSpeechOutput
from mmspec.pipelines.phonemize import PhonemizedText, Phonemizer
from mmspec.pipelines.reference import Reference
from mmspec.pipelines.request import check_count, row_seeds
from mmspec.pipelines.session import Session
from mmspec.pipelines.solo import Run
from mmspec.pipelines.speech_options import SpeechOptions, check_parts, recording
from mmspec.targets.base import Prompts
from mmspec.targets.speech import SpeechTarget, phoneme_ids

# Seconds of new speech per chunk, and in the first chunk of a sentence. Smaller chunks are heard sooner, but decode the
# same context frames more often.
CHUNK, FIRST_CHUNK = 0.6, 0.3

# Seconds of silence or repetition after which a sentence has stalled.
STALL = 2.0


class TextToSpeechPipeline(Pipeline[SpeechTarget]):
    """Speaks with an autoregressive codec language model, drafted by `drafter` and verified by the model.

    >>> pipe = TextToSpeechPipeline.from_pretrained("wren-86", torch_dtype=torch.bfloat16)
    >>> pipe("Hello there.", seed=7).save("hello.wav")

    `codec` implements `codecs.base.Codec` and is not converted to another dtype; only a codec whose kind is registered
    in `codecs.registry` can be saved with the model. `voices` are names for which the tokenizer has a token `<name>`.
    `tokens_per_phoneme` is the maximum average number of tokens per phoneme, which limits the length of a sentence.
    Sentences of more than `longest_sentence` phonemes are split. `silence` lists the codec tokens that decode to
    silence, by which a stalled sentence is noticed. An `interleaved` model generates a boundary token where each
    phoneme begins (`SpeechTarget`). The transformer's vocabulary is the tokenizer's tokens, then the codec's, the end
    token, and for an interleaved model the boundary token.
    """

    article = "a text-to-speech"
    parts: ClassVar[tuple[str, ...]] = ("tokenizer", "transformer", "codec")
    settings: ClassVar = {
        "voices": list,
        "drafter": str,
        "temperature": (int, float),
        "tokens_per_phoneme": (int, float),
        "longest_sentence": int,
        "silence": list,
        "interleaved": bool,
    }
    required: ClassVar[tuple[str, ...]] = ("voices",)
    voices: list[str]

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
        check_parts(tokenizer, transformer, codec, voices, interleaved)
        self.tokenizer, self.transformer, self.codec = tokenizer, transformer, codec
        self.voices, self.drafter, self.temperature = voices, drafter, temperature
        self.tokens_per_phoneme, self.longest_sentence = tokens_per_phoneme, longest_sentence
        self.silence, self.interleaved = frozenset(silence or ()), interleaved
        self._begin()

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: object) -> "TextToSpeechPipeline":
        """See `Pipeline`; a folder of a speech language model that people bring gives a `FamilySpeechPipeline`."""
        hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        check = partial(check_task, task="text-to-speech")
        folder = zoo.resolve(model, allow_transformers=True, check=check, **hub)
        if (folder / zoo.INDEX).is_file() or cls is not TextToSpeechPipeline:
            return super().from_pretrained(folder, **options)
        from mmspec.pipelines.family_speech import FamilySpeechPipeline

        return FamilySpeechPipeline.from_pretrained(folder, **options)

    @classmethod
    def load_parts(cls, folder: Path, index: dict, dtype: torch.dtype, components: dict, loading: Loading) -> dict:
        parts: dict = {}
        if "tokenizer" not in components:
            parts["tokenizer"] = load_tokenizer(folder)
        if "transformer" not in components:
            parts["transformer"] = load_transformer(folder, index, dtype, **loading)
        if "codec" not in components:
            parts["codec"] = registry.load(folder / "codec", index.get("codec"), folder / zoo.INDEX)
        return parts

    def describe_parts(self) -> dict:
        return {"silence": sorted(self.silence), "codec": registry.describe(self.codec)}

    def save_parts(self, folder: Path, **options: object) -> None:
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.transformer.save_pretrained(folder / "transformer", **options)
        registry.save(self.codec, folder / "codec")

    def to(self, *args: Any, **kwargs: Any) -> Self:
        super().to(*args, **kwargs)
        self.codec.to(self.device)
        return self

    def build_target(self, weights_hash: str) -> SpeechTarget:
        first = len(self.tokenizer)
        end = first + self.codec.vocabulary_size
        return SpeechTarget(
            self.transformer,
            range(first, end),
            end,
            self.codec.frame_tokens,
            boundary=end + 1 if self.interleaved else None,
            phonemes=phoneme_ids(self.tokenizer) if self.interleaved else frozenset(),
            weights_hash=weights_hash,
        )

    @property
    def end(self) -> int:
        """The token that ends a sentence: the one after the codec's."""
        return self.codec.vocabulary_size

    @property
    def ends(self) -> frozenset[int]:
        """All tokens that end a sentence."""
        return frozenset({self.end})

    def over(self, tokens: list[int]) -> bool:
        """Whether a sentence's tokens have come to their end."""
        return bool(tokens) and tokens[-1] in self.ends

    def codes(self, tokens: list[int]) -> list[int]:
        """The codec's tokens among those of the model."""
        return [token for token in tokens if 0 <= token < self.end]

    def takes_voice(self, voice: str) -> bool:
        """Whether the model has a voice of that name."""
        return voice in self.voices

    def read(self, text: str) -> PhonemizedText:
        """The sentences of a text."""
        return self.phonemizer.read(text)

    @cached_property
    def phonemizer(self) -> Phonemizer:
        """Converts text to phonemes, in sentences short enough for `longest_sentence` and for the model's positions."""
        room = int((self.target.max_positions - self.spare_tokens - 4) / (1 + self.tokens_per_phoneme))
        return Phonemizer(self.tokenizer.get_vocab(), min(self.longest_sentence, room))

    def encode(self, phonemes: list[str], voice: str, reference: Reference | None = None) -> Prompts:
        """Prompt ids of sentences that one voice speaks."""
        if reference is not None:
            raise MmspecError("this model speaks with its own voices alone: leave the reference out")
        if voice not in self.voices:
            raise unknown("voice", voice, self.voices)
        with self._tokenizer_lock:
            return Prompts([list(self.tokenizer(f"<{voice}>{text}").input_ids) for text in phonemes])

    def encode_examples(self, rows: list[dict]) -> tuple[Prompts, Stop]:
        """See `Pipeline`. The sentences of a line are joined into one row; the longest line sets the length limit.

        Lines without a voice use the pipeline's voices in turn.
        """
        texts = [self.read(row["prompt"]).sentences for row in rows]
        phonemes = [" ".join(sentence.phonemes for sentence in sentences) for sentences in texts]
        voices = [row.get("voice") or self.voices[i % len(self.voices)] for i, row in enumerate(rows)]
        prompts = [self.encode([text], voice).conditional[0] for text, voice in zip(phonemes, voices)]
        return Prompts(prompts), self.stop(max(map(self.longest, phonemes)))

    def stop(self, length: int) -> Stop:
        """A sentence ends with its end token, after `length` tokens, or when it has stalled."""
        # Twice the detector's window, since boundary tokens are removed from it.
        window = 2 * self.stall.window
        return Stop(length, self.ends, lambda row, tokens: bool(self.stall.reason(self.codes(tokens[-window:]))))

    @property
    def stall(self) -> StallDetector:
        """Detects that the last `STALL` seconds of a sentence are silent or repeat themselves."""
        codec = self.codec
        window = round(STALL * codec.sampling_rate * codec.frame_tokens / codec.frame_samples)
        return StallDetector(window, self.silence)

    @property
    def spare_tokens(self) -> int:
        """Tokens that each sentence may have beyond `tokens_per_phoneme` for each phoneme: one second of speech.

        Very short sentences need most of it.
        """
        return self.stall.window // 2

    def longest(self, phonemes: str) -> int:
        """The maximum number of tokens of a sentence, boundary tokens of an interleaved model included."""
        return int(len(phonemes) * self.tokens_per_phoneme) + self.spare_tokens

    def room(self, prompts: Prompts) -> int:
        """How many tokens the model has positions for after the longest of some prompts."""
        return self.target.max_positions - max(map(len, prompts.branches)) - 1

    def min_tokens_for_chunk(self, emitted: int, seconds: float = CHUNK) -> int:
        """How many new codec tokens to wait for before the next chunk of a sentence is decoded.

        `emitted` is the number of the sentence's codec tokens given to the decoder so far, and `seconds` the duration
        of a chunk. The first chunk is shorter (`FIRST_CHUNK`), but also waits for the tokens of its right context.
        """
        codec = self.codec
        frames = min(seconds, seconds if emitted else FIRST_CHUNK) * codec.sampling_rate / codec.frame_samples
        return codec.frame_tokens * (max(1, round(frames)) + (0 if emitted else codec.context[1]))

    def stream(  # type: ignore[override]
        self,
        text: str,
        *,
        voice: str | None = None,
        seed: int | list[int] | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback: Callable[[TextToSpeechOutput], object] | None = None,
        piece: float | None = CHUNK,
        reference: str | Path | Reference | None = None,
        output_type: Literal["audio", "codes"] = "audio",
        session: Session | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[AudioChunk]:
        """Yield audio in chunks, as soon as their tokens and their right context are verified; see `__call__`.

        A chunk is decoded after every `piece` seconds of new speech; the first of a sentence is shorter. If it is None,
        each sentence is one chunk. The last chunk of a sentence ends with the pause after it; it may be empty.
        """
        began = perf_counter()
        speaking = self._start(session)
        deprecated_callback(callback)
        if not isinstance(text, str):
            raise MmspecError(f"text must be a string, not {type(text).__name__}: give one text at a time")
        if piece is not None and not (isinstance(piece, int | float) and piece > 0):
            raise MmspecError(f"piece={piece}: give the seconds of a chunk, more than 0, or None for whole sentences")
        if output_type not in ("audio", "codes"):
            raise unknown("output_type", output_type, ("audio", "codes"))
        if output_type == "audio" and isinstance(self.codec, CodesOnly):
            raise self.codec.error
        sampling, drafter, rule = self.read_options(options)
        read = self.read(text)
        seeds = row_seeds(seed, generator, len(read.sentences), "sentences")
        voice = self.voices[0] if voice is None else voice
        encoded = self.encode([sentence.phonemes for sentence in read.sentences], voice, recording(reference))
        prompts = [encoded.select(slice(i, i + 1), 1.0) for i in range(len(read.sentences))]
        longest = max(self.longest(sentence.phonemes) for sentence in read.sentences)
        spent = perf_counter() - began
        run = self.load_drafter(speaking, drafter, prompts[0], longest)
        began = perf_counter() - spent  # loading a drafter and measuring passes, once, are not counted
        output = TextToSpeechOutput(self.codec.sampling_rate, read.sentences, seeds, read.unsaid)

        def report(step: int, new: list[int]) -> None:
            if callback:
                callback(output)
            if callback_on_step_end:
                callback_kwargs = {
                    "output": output,
                    "tokens": output.tokens,
                    "new": [new],
                    "stats": output.sentence_stats[-1],
                }
                callback_on_step_end(session or self, step, sum(map(len, output.tokens)), callback_kwargs)

        def chunks() -> Iterator[AudioChunk]:
            # Chunks of sentences without any token (pauses only) are held back until a sentence has one: if none has,
            # an error is raised, and no audio may have been yielded before it.
            pending: list[AudioChunk] = []
            for number, prompt in enumerate(prompts):
                sentence = self._speak_sentence(
                    output, number, run, prompt, piece, speaking, report, sampling, rule, output_type == "audio"
                )
                for audio in sentence:
                    if len(audio) and output.tokens[number] and not output.first_audio:
                        output.first_audio = perf_counter() - began
                    output.parts.append(audio)
                    pending.append(AudioChunk(audio, number, output))
                    if any(output.tokens):
                        yield from pending
                        pending.clear()
                if speaking.interrupt:
                    break
            if not any(output.tokens) and not speaking.interrupt:
                raise MmspecError(
                    f"the model said nothing for {text!r} with seed {seeds[0]}: try another seed or a longer text"
                )
            yield from pending

        return chunks()

    def _speak_sentence(
        self,
        output: TextToSpeechOutput,
        number: int,
        run: Run,
        prompt: Prompts,
        piece: float | None,
        session: Session,
        report: Callable[[int, list[int]], None],
        sampling: SamplingOptions,
        rule: AcceptanceRule,
        audible: bool,
    ) -> Iterator[Tensor]:
        """Generate sentence `number`, append its tokens and statistics to `output`, and yield its audio in chunks.

        A last chunk is always yielded, even without samples; the pause after the sentence is part of it.
        """
        sentence, seed = output.sentences[number], output.seeds[number]
        tokens: list[int] = []
        spoken: list[int] = []
        rounds: list[tuple[int, int]] = []
        stats, decoder, emitted, last = GenerationStats(), StreamDecoder(self.codec), 0, -1
        output.tokens.append(tokens)
        output.rounds.append(rounds)
        output.sentence_stats.append(stats)
        length = min(self.longest(sentence.phonemes), self.room(prompt))
        results = run(
            prompt,
            1,
            self.stop(length),
            sampling=sampling,
            seeds=[seed],
            rule=rule,
            stats=stats,
            cancel=session.interrupted,
        )
        for result in results:
            spoken += result.tokens[0]
            last = spoken[-1]
            new, bonus = self.codes(spoken)[len(tokens) :], len(self.codes([last]))
            tokens += new
            rounds.append((len(new) - bonus, bonus))
            report(sum(map(len, output.rounds)) - 1, new)
            if audible and piece is not None and len(tokens) - emitted >= self.min_tokens_for_chunk(emitted, piece):
                audio, emitted = decoder.push(tokens[emitted:]), len(tokens)
                if len(audio):
                    yield audio.float().clone()
        ended = self.stall.reason(tokens) or ("length" if stats.tokens == length else "interrupted")
        ended = "end" if self.over(spoken) else ended
        output.ended.append(ended)
        self._warn(output, number, ended)
        pause = 0.0 if ended == "interrupted" else sentence.pause
        parts = [decoder.flush(tokens[emitted:]).float()] if audible else []
        yield sound.join(parts, [pause] * audible, output.sampling_rate)

    def _warn(self, output: TextToSpeechOutput, number: int, ended: str) -> None:
        """Warn of a sentence that is empty or did not end with the end token, unless it was interrupted.

        No warning is given for an empty sentence that is the only one: `stream` raises an error for it.
        """
        tokens, sentence = output.tokens[number], output.sentences[number]
        trouble = "came out empty" if not tokens else f"did not end by itself ({ended})" if ended != "end" else ""
        if trouble and ended != "interrupted" and (tokens or len(output.sentences) > 1):
            shown = sentence.text if len(sentence.text) < 60 else f"{sentence.text[:57]}..."
            warnings.warn(f"sentence {number + 1} {trouble}: {shown!r}; try another seed", stacklevel=1)

    @overload  # type: ignore[override]
    def __call__(  # type: ignore[overload-overlap]
        self, text: str, *, num_return_sequences: Literal[1] = 1, **options: Unpack[SpeechOptions]
    ) -> TextToSpeechOutput: ...

    @overload
    def __call__(
        self, text: str | list[str], *, num_return_sequences: int = 1, **options: Unpack[SpeechOptions]
    ) -> list[TextToSpeechOutput]: ...

    def __call__(
        self,
        text: str | list[str],
        *,
        voice: str | None = None,
        seed: int | list[int] | None = None,
        generator: torch.Generator | None = None,
        num_return_sequences: int = 1,
        stream_to: Callable[[Tensor], object] | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback: Callable[[TextToSpeechOutput], object] | None = None,
        reference: str | Path | Reference | None = None,
        output_type: Literal["audio", "codes"] = "audio",
        session: Session | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextToSpeechOutput | list[TextToSpeechOutput]:
        """Speak a text, sentence by sentence.

        Args:
            text: what to say; a list gives a list of outputs, one after the other.
            voice: one of `voices`, the first if None.
            seed: sentence i uses seed + i, also over several texts, or seed[i] if a list is given for one text; a
                random seed if None.
            generator: where seeds are drawn from instead.
            num_return_sequences: how often each text is said; with more than 1 the outputs are a list.
            stream_to: called with each chunk of audio as soon as it is decoded; without it, each sentence is decoded
                as a whole.
            callback_on_step_end: called as (pipe, step, position, {"output", "tokens", "new", "stats"}) after each
                round. `pipe` is the session if one is given, `step` counts rounds and `position` codec tokens over all
                sentences. Setting `pipe.interrupt = True` stops generation; the audio so far is returned.
            callback: deprecated; called with the output so far.
            reference: a recording of the voice to speak with, for models that clone voices: a file, or a `Reference`
                of a file and what is said in it.
            output_type: "codes" makes no sound of the codec's tokens.
            options: see `GenerateOptions`.
        """
        check_count("num_return_sequences", num_return_sequences)
        speak = partial(
            self._speak,
            voice=voice,
            stream_to=stream_to,
            callback_on_step_end=callback_on_step_end,
            callback=callback,
            reference=reference,
            output_type=output_type,
            session=session,
            **options,
        )
        if isinstance(text, str) and num_return_sequences == 1:
            return speak(text, seed=seed, generator=generator)
        if isinstance(seed, list | tuple):
            raise MmspecError("a list of seeds is for the sentences of one text: give one number, which counts up")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not texts:
            raise MmspecError(f"text must be a string or a list of strings, not {text!r:.60}")
        first = row_seeds(seed, generator, 1)[0]
        outputs: list[TextToSpeechOutput] = []
        for one in texts:
            for _ in range(num_return_sequences):
                outputs.append(speak(one, seed=first + sum(len(output.seeds) for output in outputs), generator=None))
        return outputs

    def _speak(
        self,
        text: str,
        stream_to: Callable[[Tensor], object] | None,
        **options: Any,
    ) -> TextToSpeechOutput:
        """Speak one text, with a progress bar of its sentences."""
        with self.progress_bar() as bar:
            for chunk in self.stream(text, piece=CHUNK if stream_to else None, **options):
                bar.total = len(chunk.output.sentences)
                bar.update(len(chunk.output.ended) - bar.n)
                if stream_to and len(chunk.audio):
                    stream_to(chunk.audio)
        return chunk.output
