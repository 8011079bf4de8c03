"""Image and text to text: a chat with pictures, answered by a vision-language model."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import jinja2
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoProcessor, GenerationConfig, PreTrainedModel, ProcessorMixin

from mmspec import zoo
from mmspec.engine.accept import acceptance as rule_of
from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.media import image as picture
from mmspec.pipelines import quantized as blocks
from mmspec.pipelines.base import TransformerPipeline
from mmspec.pipelines.loading import TOKENIZER_LOCK, copy_companions, opened, rename_target
from mmspec.pipelines.request import row_seeds
from mmspec.targets.causal import CausalTarget
from mmspec.targets.registry import target_of
from mmspec.targets.vision_language import VisualPrompts

Chat = list[dict[str, Any]]

# The first bytes of a character whose rest has not come yet decode to this.
UNFINISHED = "\ufffd"

SETTINGS: dict[str, Any] = {"drafter": str, "temperature": (int, float), "max_new_tokens": int}


@dataclass(slots=True)
class ImageTextToTextOutput:
    """Answers and how they came about, one entry for each chat. `ended` is "end" (the model's own), "length" or "interrupted"."""

    chats: list[Chat]
    seeds: list[int]
    texts: list[str]
    tokens: list[list[int]]
    stats: GenerationStats = field(default_factory=GenerationStats)
    ended: list[str] = field(default_factory=list)
    first_token: float = 0.0
    prompt_tokens: int = 0

    @property
    def text(self) -> str:
        """The first answer, or the only one."""
        return self.texts[0]

    def chat(self, row: int = 0) -> Chat:
        """The chat and its answer, to go on with."""
        return [*self.chats[row], {"role": "assistant", "content": [{"type": "text", "text": self.texts[row]}]}]


@dataclass(frozen=True, slots=True)
class Words:
    """What one round verified: new text and tokens of every chat; `output` is all that is there so far."""

    texts: list[str]
    tokens: list[list[int]]
    output: ImageTextToTextOutput


class ImageTextToTextPipeline(TransformerPipeline[CausalTarget]):
    """Answers questions about pictures with a vision-language model of transformers, drafted by `drafter` and verified by the model.

    >>> pipe = ImageTextToTextPipeline.from_pretrained("magpie-135", torch_dtype=torch.bfloat16)
    >>> pipe("photo.png", "How many hearts are there?").text
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        transformer: PreTrainedModel,
        drafter: str = "jacobi",
        temperature: float = 0.0,
        max_new_tokens: int = 256,
    ):
        super().__init__(transformer)
        self.processor = processor
        self.drafter, self.temperature, self.max_new_tokens = drafter, temperature, max_new_tokens

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "ImageTextToTextPipeline":
        """Load a bundled name, a folder made by `save_pretrained` or one of transformers, or a hub id; `torch_dtype` is the model's.

        Components and settings of `__init__` may be given instead of loaded; options that cannot be honoured are refused.
        """
        folder, dtype, index = opened(cls, "an image-text-to-text", model, options, bare=True)
        for name, kind in SETTINGS.items():
            if name in index and not isinstance(index[name], kind):
                raise MmspecError(
                    f"{folder / zoo.INDEX}: {name} is {index[name]!r}: restore it from the model's source"
                )
        parts: dict[str, Any] = {name: index[name] for name in SETTINGS if name in index} | options
        if "processor" not in parts:
            path = folder / "processor" if (folder / "processor").is_dir() else folder
            try:
                parts["processor"] = AutoProcessor.from_pretrained(path)
            except Exception as error:  # tokenizers raises bare Exception for a damaged file
                reason = " ".join(str(error).split())[:200]
                raise MmspecError(
                    f"{path} has no processor that loads ({reason}): restore it from the model's source"
                ) from None
        if "transformer" not in parts:
            parts["transformer"] = load_transformer(folder, dtype)
        pipe = cls(**parts)
        pipe.folder = folder
        return pipe

    def save_pretrained(self, folder: str | Path) -> None:
        """Save all components and copy what else the model's folder holds: drafters, card, recipe."""
        goal = Path(folder)
        goal.mkdir(parents=True, exist_ok=True)
        copy_companions(self.folder, goal)
        self.processor.save_pretrained(goal / "processor")
        self.transformer.save_pretrained(goal / "transformer")
        (goal / "transformer" / blocks.INDEX).unlink(
            missing_ok=True
        )  # saved over a model in blocks, which this one is no longer
        for path in (goal / "transformer").glob("*.safetensors"):
            if not path.name.startswith("model"):
                path.unlink()
        index = {
            "_class_name": type(self).__name__,
            "transformer": ["transformers", type(self.transformer).__name__],
            **{name: getattr(self, name) for name in SETTINGS},
        }
        (goal / zoo.INDEX).write_text(json.dumps(index, indent=2) + "\n")
        rename_target(goal, self.target.weights_hash)

    def build_target(self, weights_hash: str) -> CausalTarget:
        return target_of(self.transformer, weights_hash)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        known = self.transformer.generation_config.eos_token_id
        found = (
            known
            if isinstance(known, list)
            else [known]
            if known is not None
            else [self.processor.tokenizer.eos_token_id]
        )
        return frozenset(token for token in found if token is not None)

    def encode(self, chats: list[Chat]) -> VisualPrompts:
        """Chats as token ids and pixels, by the processor's own template."""
        if not getattr(self.processor, "chat_template", None):
            raise MmspecError(f"{self.folder or 'the processor'} has no chat template: use a model that has one")
        law = dict(tokenize=True, return_dict=True, return_tensors="pt")
        found = []
        try:
            with TOKENIZER_LOCK:
                for chat in chats:
                    # An answer at the end of a chat is gone on with, as transformers' pipeline does.
                    end = "continue_final_message" if chat[-1]["role"] == "assistant" else "add_generation_prompt"
                    found.append(dict(self.processor.apply_chat_template(chat, **law, **{end: True})))
                return VisualPrompts.of(found)
        except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise MmspecError(f"the model's processor refuses the chat ({reason}): check roles and pictures") from None

    def rows(self, asked: list[dict]) -> tuple[VisualPrompts, Stop]:
        """What the loop is given for lines of `prompts.jsonl` as rows of one batch; and when a row ends."""
        folder = self.folder or Path()
        given = []
        for row in asked:
            messages: list[dict[str, Any]] = [
                {"role": role, "content": text}
                for turn in row.get("before", [])
                for role, text in zip(("user", "assistant"), turn)
            ]
            messages.append({"role": "user", "content": row["prompt"]})
            if row.get("image"):
                first = messages[0]["content"]
                messages[0]["content"] = [
                    {"type": "image", "path": folder / row["image"]},
                    {"type": "text", "text": first},
                ]
            given.append(_chat(messages, []))
        return self.encode(given), Stop(self.max_new_tokens, self.ends)

    def stream(
        self,
        images: Any = None,
        text: Any = None,
        *,
        seed: int | list[int] | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        drafter: Any = None,
        acceptance: Any = "exact",
    ) -> Iterator[Words]:
        """Answer round by round; see `__call__` for the arguments. Closing the iterator, or setting `interrupt`, ends it early."""
        self.interrupt = False
        began = perf_counter()
        asked = chats(images, text)
        length = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise MmspecError(f"max_new_tokens={length}: give a whole number from 1 up")
        law = (self.temperature if temperature is None else temperature, top_k, top_p)
        sampling = SamplingOptions(*law, repetition_penalty=repetition_penalty)
        rule, chosen = rule_of(acceptance), self.drafter if drafter is None else drafter
        seeds = row_seeds(0 if seed is None and sampling.greedy else seed, None, len(asked), "chats")
        prompts = self.encode(asked)
        spent = perf_counter() - began
        run = self.loop(self, chosen, prompts, length)
        began = perf_counter() - spent  # loading a drafter and measuring passes, once, are not counted
        out = ImageTextToTextOutput(
            asked, seeds, [""] * len(asked), [[] for _ in asked], prompt_tokens=sum(map(len, prompts.conditional))
        )

        def answer() -> Iterator[Words]:
            stop, ends = Stop(length, self.ends), self.ends
            law: dict[str, Any] = dict(
                sampling=sampling, seeds=seeds, rule=rule, cancel=lambda: self.interrupt, stats=out.stats
            )
            last = [-1] * len(asked)
            for found in run(prompts, len(asked), stop, **law):
                out.first_token = out.first_token or perf_counter() - began
                fresh = []
                for row, new in enumerate(found.tokens):
                    last[row] = new[-1] if new else last[row]
                    out.tokens[row] += [token for token in new if token not in ends]
                    whole = self.processor.tokenizer.decode(out.tokens[row], skip_special_tokens=True)
                    shown = whole.rstrip(UNFINISHED) if last[row] not in ends else whole
                    fresh.append(shown[len(out.texts[row]) :])
                    out.texts[row] += fresh[-1]
                yield Words(fresh, found.tokens, out)
            out.ended = [
                "end" if token in ends else "length" if len(tokens) == length else "interrupted"
                for token, tokens in zip(last, out.tokens)
            ]

        return answer()

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        seed: int | list[int] | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        drafter: Any = None,
        acceptance: Any = "exact",
        callback: Callable[[Words], Any] | None = None,
    ) -> ImageTextToTextOutput:
        """Answer a question about a picture, or go on with a chat.

        Args:
            images: a PIL image, a path, a URL, bytes, or a list of them; or a chat, or a list of chats, as transformers' pipeline
                takes them: `[{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text", "text": "..."}]}]`.
            text: the question about the images, or about nothing seen; a list of questions, one for each image; or a chat, or a list of
                chats, whose parts `{"type": "image"}` stand for the images, one after the other. An answer at the end of a chat is gone on with.
            seed: chat i uses seed + i; a list gives each its own; drawn if None. The same seed gives the same answer with any drafter.
            max_new_tokens, temperature, top_k, top_p, repetition_penalty: the sampling law; temperature 0 is greedy; the model's defaults if None.
            drafter: a name or an instance; "none" is plain autoregressive decoding, None the model's default.
            acceptance: exact, rejection (lossless in law); tolerance:τ with τ > 1 and typical are LOSSY, and the statistics say so.
            callback: given each round's words; it may set `interrupt` to stop, and what was said is kept.
        """
        law: dict[str, Any] = dict(
            temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty
        )
        how: dict[str, Any] = dict(seed=seed, max_new_tokens=max_new_tokens, drafter=drafter, acceptance=acceptance)
        for words in self.stream(images, text, **law, **how):
            if callback:
                callback(words)
        return words.output


def chats(images: Any, text: Any) -> list[Chat]:
    """What was asked, as chats whose pictures are PIL images in RGB."""
    if text is None and isinstance(images, list):
        images, text = None, images
    pictures = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
    if isinstance(text, list) and text and all(isinstance(one, str) for one in text):
        if pictures and len(pictures) != len(text):
            raise MmspecError(f"{len(pictures)} images were given for {len(text)} questions: give one each, or chats")
        return [chats(pictures[row] if pictures else None, one)[0] for row, one in enumerate(text)]
    if isinstance(text, list):
        found = [_chat(one, pictures) for one in (text if text and isinstance(text[0], list) else [text])]
        if pictures:
            raise MmspecError(
                f'{len(pictures)} of the images have no place in the chat: put {{"type": "image"}} where each belongs'
            )
        return found
    if not isinstance(text, str) or not text.strip():
        raise MmspecError("there is no question: say what to answer, as in 'How many hearts are there?'")
    parts = [*({"type": "image", "image": one} for one in pictures), {"type": "text", "text": text}]
    return [_chat([{"role": "user", "content": parts}], [])]


def _chat(messages: Any, pictures: list[Any]) -> Chat:
    """Messages checked, each with a list of parts; images without a source are taken from the front of `pictures`."""
    found: Chat = []
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in messages)
    ):
        raise MmspecError(
            'a chat is a list of messages such as {"role": "user", "content": [{"type": "text", "text": "Hello"}]}'
        )
    for message in messages:
        content = message["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple) or not all(isinstance(part, dict) for part in parts):
            raise MmspecError(f"the content of a message is a string or a list of parts, not {content!r:.60}")
        found.append({"role": message["role"], "content": [_part(part, pictures) for part in parts]})
    return found


def _part(part: dict[str, Any], pictures: list[Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    source = next((part[key] for key in ("image", "url", "path", "image_url") if part.get(key) is not None), None)
    if source is None and part.get("base64") is not None:
        source = f"data:;base64,{part['base64']}"
    if isinstance(source, dict):  # as OpenAI's clients give it
        source = source.get("url")
    if kind == "image" and source is None and pictures:
        source = pictures.pop(0)
    if kind not in ("image", "image_url") or source is None:
        raise MmspecError(
            f"a part of a message is text or an image with its source, not {part!r:.80}: videos and sounds are not supported"
        )
    return {"type": "image", "image": picture.read(source)}


def load_transformer(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model class that a folder's config names, in `dtype`."""
    path = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        given = json.loads((path / "config.json").read_text())["architectures"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise MmspecError(
            f"{path / 'config.json'} cannot be read ({error!r}): restore it from the model's source"
        ) from None
    found = getattr(transformers, str(given), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise MmspecError(f"{path / 'config.json'} names {given}, which is no model class of transformers")
    kind: Any = found
    if not (path / blocks.INDEX).exists():
        return zoo.load_component(path.parent, path.name, kind, dtype=dtype)
    try:
        config, ends = kind.config_class.from_pretrained(path), GenerationConfig.from_pretrained(path)
        state = blocks.load(path, dtype)
        model, report = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    except MmspecError:
        raise
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MmspecError(f"{path} does not load as {given} ({reason}): restore it from the model's source") from None
    zoo.check_report(report, path, path / "config.json", given)
    model.generation_config = ends
    return model
