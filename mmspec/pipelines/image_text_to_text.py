"""Image and text to text: a chat with pictures, answered by a vision-language model."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Unpack, cast

import jinja2
import torch
from transformers import (
    LogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SuppressTokensLogitsProcessor,
)

from mmspec.engine.loop import Stop
from mmspec.errors import MmspecError, short
from mmspec.pipelines import quantized
from mmspec.pipelines.base import GenerateOptions, Pipeline, StepCallback, deprecated_callback
from mmspec.pipelines.chat_encoder import ChatEncoder
from mmspec.pipelines.chats import Chat, as_chats, example_chat
from mmspec.pipelines.generation_config import APPLIED, applied, check_entries, sampling_defaults, warn_of_others
from mmspec.pipelines.loading import Loading, load_processor
from mmspec.pipelines.outputs import ImageTextToTextOutput, TextChunk
from mmspec.pipelines.request import check_count, row_seeds
from mmspec.pipelines.session import Session
from mmspec.pipelines.text_processor import TextProcessor
from mmspec.pipelines.transformer import check_family, load_transformer
from mmspec.targets.causal import CausalTarget
from mmspec.targets.registry import target_of
from mmspec.targets.vision_language import VisualPrompts

# The first bytes of a character whose rest has not come yet decode to this.
UNFINISHED = "\ufffd"


class ImageTextToTextPipeline(Pipeline[CausalTarget]):
    """Answers questions about pictures with a vision-language model of transformers, or about none with a language
    model.

    It samples as the model's `generation_config.json` says, in `temperature` too if that is None.

    >>> pipe = ImageTextToTextPipeline.from_pretrained("magpie-135", torch_dtype=torch.bfloat16)
    >>> pipe("photo.png", "How many hearts are there?").text
    """

    article = "an image-text-to-text"
    parts = ("processor", "transformer")
    settings: ClassVar = {"drafter": str, "temperature": (int, float), "max_new_tokens": int}
    allow_transformers = True

    def __init__(
        self,
        processor: ProcessorMixin | TextProcessor,
        transformer: PreTrainedModel,
        drafter: str = "lookup",
        temperature: float | None = None,
        max_new_tokens: int = 256,
    ):
        self.processor, self.transformer = processor, transformer
        self.drafter, self.max_new_tokens = drafter, max_new_tokens
        config = self._generation_config
        check_entries(config, getattr(transformer.config.get_text_config(), "vocab_size", None))
        self._sampling = sampling_defaults(config)
        self.temperature = cast(float, self._sampling["temperature"]) if temperature is None else temperature
        warn_of_others(config, APPLIED)
        self._encoder: ChatEncoder | None = None
        self._begin()

    @property
    def _generation_config(self) -> dict[str, object]:
        return self.transformer.generation_config.to_dict()

    @property
    def sampling_defaults(self) -> dict[str, object]:
        return self._sampling | {"temperature": self.temperature}

    @property
    def processors(self) -> list[LogitsProcessor]:
        made: dict[str, Callable[[Any], LogitsProcessor]] = {
            "no_repeat_ngram_size": NoRepeatNGramLogitsProcessor,
            "bad_words_ids": partial(NoBadWordsLogitsProcessor, eos_token_id=sorted(self.ends)),
            "suppress_tokens": partial(SuppressTokensLogitsProcessor, device=str(self.device)),
        }
        asked = applied(self._generation_config)
        return [make(asked[name]) for name, make in made.items() if name in asked]

    @classmethod
    def load_parts(cls, folder: Path, index: dict, dtype: torch.dtype, components: dict, loading: Loading) -> dict:
        parts: dict = {}
        if "transformer" not in components:
            check_family(folder, bool(loading.get("trust_remote_code")))  # refused by name, before anything is read
        if "processor" not in components:
            path = folder / "processor" if (folder / "processor").is_dir() else folder
            processor = load_processor(path)
            text_only = isinstance(processor, PreTrainedTokenizerBase)
            parts["processor"] = TextProcessor(processor, path) if text_only else processor
        if "transformer" not in components:
            parts["transformer"] = load_transformer(folder, dtype, **loading)
        return parts

    def save_parts(self, folder: Path, **options: object) -> None:
        self.processor.save_pretrained(folder / "processor")
        self.transformer.save_pretrained(folder / "transformer", **options)
        # The folder may have held a quantised model, which this one is no longer.
        (folder / "transformer" / quantized.INDEX).unlink(missing_ok=True)
        for path in (folder / "transformer").glob("*.safetensors"):
            if not path.name.startswith("model"):
                path.unlink()

    def build_target(self, weights_hash: str) -> CausalTarget:
        return target_of(self.transformer, weights_hash)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        eos = self.transformer.generation_config.eos_token_id
        tokens = eos if isinstance(eos, list) else [self.processor.tokenizer.eos_token_id if eos is None else eos]
        return frozenset(token for token in tokens if token is not None)

    def encode(self, chats: list[Chat]) -> VisualPrompts:
        """Chats as token ids and pixels, by the processor's own template; control tokens in texts are text."""
        if not getattr(self.processor, "chat_template", None):
            raise MmspecError(f"{self.folder or 'the processor'} has no chat template: use a model that has one")
        try:
            with self._tokenizer_lock:
                if self._encoder is None or self._encoder.processor is not self.processor:
                    self._encoder = ChatEncoder(self.processor)
                return VisualPrompts.of([self._encoder(chat) for chat in chats])
        except MmspecError:
            raise
        except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
            raise MmspecError(
                f"the model's processor refuses the chat ({short(error)}): check roles and pictures"
            ) from None

    def text_of(self, tokens: list[int], ended: bool) -> str:
        """The text of an answer's tokens; unless it has `ended`, the first bytes of a character wait for its rest."""
        said = [token for token in tokens if token not in self.ends]
        whole = self.processor.tokenizer.decode(said, skip_special_tokens=True)
        return whole if ended else whole.rstrip(UNFINISHED)

    def encode_answer(self, answer: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        end = tokenizer.eos_token_id if tokenizer.eos_token_id in self.ends else min(self.ends, default=None)
        ids = tokenizer.encode(answer, add_special_tokens=False)
        return self.target.tokens(ids if end is None else [*ids, end])

    def encode_examples(self, rows: list[dict]) -> tuple[VisualPrompts, Stop]:
        folder = self.folder or Path()
        return self.encode([example_chat(row, folder) for row in rows]), Stop(self.max_new_tokens, self.ends)

    def stream(  # type: ignore[override]
        self,
        images: object = None,
        text: object = None,
        *,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        session: Session | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[TextChunk]:
        """Answer round by round; see `__call__` for the arguments."""
        began = perf_counter()
        answering = self._start(session)
        check_count("num_return_sequences", num_return_sequences)
        chats = [chat for chat in as_chats(images, text) for _ in range(num_return_sequences)]
        length = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        check_count("max_new_tokens", length)
        sampling, drafter, rule = self.read_options(options)
        unseeded = seed is None and generator is None
        seeds = row_seeds(0 if unseeded and sampling.greedy else seed, generator, len(chats), "chats")
        prompts, ends = self.encode(chats), self.ends
        spent = perf_counter() - began
        run = self.load_drafter(answering, drafter, prompts, length)
        began = perf_counter() - spent  # loading a drafter and measuring passes, once, are not counted
        output = ImageTextToTextOutput(chats, seeds, [""] * len(chats), [[] for _ in chats])
        output.prompt_tokens = sum(map(len, prompts.conditional))

        def chunks() -> Iterator[TextChunk]:
            last = [-1] * len(chats)
            results = run(
                prompts,
                len(chats),
                Stop(length, ends),
                sampling=sampling,
                seeds=seeds,
                rule=rule,
                stats=output.stats,
                cancel=answering.interrupted,
            )
            for result in results:
                output.first_token = output.first_token or perf_counter() - began
                new_texts = []
                for row, new in enumerate(result.tokens):
                    last[row] = new[-1] if new else last[row]
                    output.tokens[row] += [token for token in new if token not in ends]
                    shown = self.text_of(output.tokens[row], last[row] in ends)
                    new_texts.append(shown[len(output.texts[row]) :])
                    output.texts[row] += new_texts[-1]
                yield TextChunk(new_texts, result.tokens, output)
            output.ended = [
                "end" if token in ends else "length" if len(tokens) == length else "interrupted"
                for token, tokens in zip(last, output.tokens)
            ]

        return chunks()

    def __call__(  # type: ignore[override]
        self,
        images: object = None,
        text: object = None,
        *,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback: Callable[[TextChunk], object] | None = None,
        session: Session | None = None,
        **options: Unpack[GenerateOptions],
    ) -> ImageTextToTextOutput:
        """Answer a question about a picture, or go on with a chat.

        Args:
            images: a PIL image, a path, a URL, bytes, or a list of them; or a chat, or a list of chats, as
                transformers' pipeline takes them:
                `[{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text", "text": "..."}]}]`.
            text: the question about the images, or about nothing seen; a list of questions, one for each image; or a
                chat, or a list of chats, whose parts `{"type": "image"}` stand for the images, one after the other. An
                answer at the end of a chat is gone on with.
            seed: chat i uses seed + i; a list gives each its own; drawn if None.
            generator: where seeds are drawn from instead: one generator, or one for each answer.
            num_return_sequences: how many answers to each chat, next to each other.
            max_new_tokens: the most tokens of an answer; the model's default if None.
            callback_on_step_end: called as (pipe, step, position, {"output", "tokens", "new", "stats"}) after each
                round; it may set `pipe.interrupt = True` to stop, and what was said is kept.
            callback: deprecated; called with each round's `TextChunk`.
            options: see `GenerateOptions`.
        """
        deprecated_callback(callback)
        chunks = self.stream(
            images,
            text,
            seed=seed,
            generator=generator,
            num_return_sequences=num_return_sequences,
            max_new_tokens=max_new_tokens,
            session=session,
            **options,
        )
        with self.progress_bar(total=max_new_tokens or self.max_new_tokens) as bar:
            for step, chunk in enumerate(chunks):
                output = chunk.output
                bar.update(max(map(len, output.tokens)) - bar.n)
                if callback:
                    callback(chunk)
                if callback_on_step_end:
                    callback_kwargs = {
                        "output": output,
                        "tokens": output.tokens,
                        "new": chunk.tokens,
                        "stats": output.stats,
                    }
                    callback_on_step_end(session or self, step, min(map(len, output.tokens)), callback_kwargs)
        return chunk.output
