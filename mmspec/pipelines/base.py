"""What all pipelines share: loading and saving, placement, the target, sampling options, sessions."""

import inspect
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar, Unpack

import torch
import transformers
from tqdm.auto import tqdm
from transformers import LogitsProcessor, PreTrainedModel

from mmspec import zoo
from mmspec.drafters.base import Drafter
from mmspec.engine.accept import AcceptanceRule, acceptance
from mmspec.engine.loop import Stop
from mmspec.engine.packed import pack_weights
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError, short, unknown
from mmspec.pipelines.generation_config import NEUTRAL
from mmspec.pipelines.loading import Loading, copy_companions, open_folder, pop_loading, rename_target
from mmspec.pipelines.session import Session
from mmspec.pipelines.solo import Run, Runner, Solo
from mmspec.placement import check_pair, device_of, dtype_of
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget

AnyTarget = TypeVar("AnyTarget", bound=CausalTarget)

# diffusers' signature: the pipeline or session, the number of the round, the position, and what there is to see.
StepCallback = Callable[..., dict | None]


class GenerateOptions(TypedDict, total=False):
    """How any pipeline samples, drafts and accepts.

    temperature, top_k, top_p, min_p, repetition_penalty: see `SamplingOptions`; temperature 0 is greedy, None the
        model's default (`Pipeline.sampling_defaults`).
    logits_processor: applied after those that the model's `generation_config.json` asks for.
    drafter: a name or an instance; "none" is plain autoregressive decoding, None the model's default. The same seed
        gives the same output with any drafter.
    acceptance: exact, rejection (lossless in distribution); tolerance:τ with τ > 1, typical and lexical are LOSSY, and
        the statistics say so.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    logits_processor: Sequence[LogitsProcessor]
    drafter: str | Drafter | None
    acceptance: str | AcceptanceRule


# Arguments of other libraries' pipelines that mean nothing here, and what to do.
FOREIGN_OPTIONS = {
    "num_inference_steps": "an autoregressive model has no denoising steps: leave it out",
    "height": "a pipeline's pictures have one size: give it to pipeline() if the model draws several",
    "width": "a pipeline's pictures have one size: give it to pipeline() if the model draws several",
    "negative_prompt": "guidance is against the empty prompt: leave it out",
    "latents": "there are none: use seed or generator",
    "eta": "that is for diffusion: leave it out",
    "callback_on_step_end_tensor_inputs": "callback_on_step_end is always given all that there is: leave it out",
    "cross_attention_kwargs": "that is for diffusion: leave it out",
    "num_return_sequences": "use num_images_per_prompt",
    "num_images_per_prompt": "use num_return_sequences",
    "do_sample": "temperature=0 is greedy, and above 0 samples",
    "num_beams": "there is no beam search: leave it out",
    "max_length": "use max_new_tokens",
    "generate_kwargs": "give its entries as arguments",
    "assistant_model": "use drafter",
    "speed": "the model speaks at one speed: leave it out",
}


class Pipeline(ABC, Generic[AnyTarget]):
    """Turns prompts into media with a target that drafters speed up.

    `folder` is where the model was loaded from, `runner` runs generations, and `drafter` and `temperature` are the
    model's defaults. Setting `interrupt` ends the present generation between rounds; a `session` has its own.
    """

    # What an error calls such a model, the keys of its index with their types, and those that it must have.
    article: ClassVar[str]
    settings: ClassVar[dict[str, type | tuple[type, ...]]]
    required: ClassVar[tuple[str, ...]] = ()
    # The folder of the transformer's weights, where the model's folder has parts.
    weights_part: ClassVar[str] = "transformer"
    # Whether a folder of transformers, without an index, will do.
    allow_transformers: ClassVar[bool] = False

    transformer: PreTrainedModel
    drafter: str
    temperature: float
    # Names of voices, for a pipeline that speaks.
    voices: Sequence[str] = ()
    # The names of the constructor's parts.
    parts: ClassVar[tuple[str, ...]]
    # How `progress_bar` looks; it is off unless `set_progress_bar_config` says otherwise.
    _progress_bar_config: dict = {"disable": True}

    def _begin(self) -> None:
        """The state that every pipeline has; called by constructors."""
        self.folder: Path | None = None
        self.runner: Runner = Solo()
        self._own_session: Session = Session(self)
        self._tokenizer_lock = Lock()
        self._target: tuple[tuple, AnyTarget] | None = None

    @abstractmethod
    def build_target(self, weights_hash: str) -> AnyTarget:
        """The transformer as the loop sees it; `weights_hash` names its weights."""

    @abstractmethod
    def encode_examples(self, rows: list[dict]) -> tuple[Prompts, Stop]:
        """Lines of `prompts.jsonl` as rows of one batch, and when a row ends."""

    def encode_answer(self, answer: str) -> list[int]:
        """The tokens of an answer that training data bring, its end included."""
        raise MmspecError(
            f"answers of {self.article} model cannot be given as text: give their tokens, or leave them out"
        )

    @property
    def default_guidance(self) -> float:
        """The guidance where nothing else is said; 1 is none."""
        return 1.0

    @abstractmethod
    def stream(self, *args: Any, session: Session | None = None, **kwargs: Any) -> Iterator[Any]:
        """Generate round by round. Closing the iterator, or setting `interrupt`, ends it early."""

    @abstractmethod
    def __call__(self, *args: Any, session: Session | None = None, **kwargs: Any) -> Any:
        """Generate to the end."""

    def session(self, runner: Runner | None = None) -> Session[Self]:
        """One caller's use of this pipeline, with an `interrupt` of its own, and a runner of its own if given."""
        return Session(self, runner)

    @property
    def interrupt(self) -> bool:
        return self._own_session.interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._own_session.interrupt = value

    # The name that pipelines of diffusers use.
    _interrupt = interrupt

    @property
    def components(self) -> dict[str, object]:
        """The arguments that make another pipeline like this one, which shares its models: parts and settings.

        Trained drafters stay with `folder`, which is none of them.
        """
        return {name: getattr(self, name) for name in self.parts} | self.current_settings()

    def current_settings(self) -> dict[str, object]:
        """The settings of the index, as they are now."""
        return {name: getattr(self, name) for name in self.settings}

    def set_progress_bar_config(self, **config: Any) -> None:
        """Options of tqdm for the progress bar, as in diffusers: `disable=False` shows it."""
        self._progress_bar_config = config

    def progress_bar(self, iterable: Iterable | None = None, total: float | None = None) -> tqdm:
        """A progress bar over something, or of `total` steps."""
        return tqdm(iterable, total=total, **self._progress_bar_config)

    @property
    def sampling_defaults(self) -> dict[str, object]:
        """How the model samples where nothing else is said, by the names of `SamplingOptions`."""
        return NEUTRAL | {"temperature": self.temperature}

    @property
    def processors(self) -> list[LogitsProcessor]:
        """What the model applies to logits before anything that a caller asks for."""
        return []

    def _start(self, session: Session | None) -> Session:
        """The session of a generation that begins."""
        session = session or self._own_session
        session.interrupt = False
        return session

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def placed(self) -> bool:
        """Whether transformers has placed the model: by a `device_map`, or because it is quantised."""
        model = self.transformer
        return getattr(model, "hf_device_map", None) is not None or getattr(model, "hf_quantizer", None) is not None

    @property
    def target(self) -> AnyTarget:
        """The transformer as the loop sees it, on its present device and in its present dtype."""
        model = self.transformer
        key = (id(model), model.device, model.dtype)
        if self._target is None or self._target[0] != key:
            before = self._target[1] if self._target else None
            part = self.folder / self.weights_part if self.folder else None
            weights = zoo.weights_hash(part if part.is_dir() else part.parent) if part else ""
            self._target = key, self.build_target(weights)
            if not self.placed:
                pack_weights(self._target[1].decoder, self.transformer)
            if before:
                self.deterministic, self.compiled = before.deterministic, before.compiled
        return self._target[1]

    @property
    def deterministic(self) -> bool:
        """Whether a seed gives the same tokens in bfloat16 bit for bit, with any drafter and in any batch, on a CPU.

        Drafts are then chains, so that attention sums over keys in one order whatever was drafted, and fewer tokens are
        accepted a round (docs/how-it-works.md). Setting it raises MmspecError for other devices and dtypes.
        """
        return self.target.deterministic

    @deterministic.setter
    def deterministic(self, value: bool) -> None:
        device, dtype = self.device.type, self.transformer.dtype
        if value and (device, dtype) != ("cpu", torch.bfloat16):
            raise MmspecError(
                f"deterministic passes are known in bf16 on a CPU, not in {dtype} on {device}: use bf16 on a CPU, or "
                "leave deterministic out (in fp32 only ties of about 1e-6 are decided by rounding)"
            )
        if value and self.target.compiled:
            raise MmspecError(
                "compiled passes of different widths may differ in their last bits: set compiled to False"
            )
        self.target.deterministic = value

    @property
    def compiled(self) -> bool:
        """Whether passes run as graphs that `torch.compile` makes of each of a few widths when it is first needed.

        That takes a minute or more at first (torch keeps the graphs on disk), and needs a C++ compiler on CPUs; where
        it fails, a warning says so and passes run uncompiled. Setting it raises MmspecError for models that cannot be
        compiled, and together with `deterministic`.
        """
        return self.target.compiled

    @compiled.setter
    def compiled(self, value: bool) -> None:
        if value and self.target.deterministic:
            raise MmspecError(
                "compiled passes of different widths may differ in their last bits: leave deterministic out"
            )
        self.target.compiled = value

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device, and the transformer to a dtype; what decodes its tokens keeps its precision."""
        kwargs.pop("silence_dtype_warnings", None)
        try:
            device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        except (RuntimeError, TypeError) as error:
            raise MmspecError(f"to() takes a device or a dtype of torch, such as 'cuda': {short(error)}") from None
        if device is not None and device.type in ("cuda", "mps"):
            device_of(device)  # says which devices there are
        if self.placed:
            raise MmspecError("the model is quantised, or placed by device_map: it stays as transformers loaded it")
        device, dtype = device or self.device, dtype_of(dtype or self.transformer.dtype)
        check_pair(device, dtype)
        if self._target and self._target[1].deterministic and (device.type, dtype) != ("cpu", torch.bfloat16):
            raise MmspecError("deterministic passes are known in bf16 on a CPU: set deterministic to False first")
        if (device, dtype) != (self.device, self.transformer.dtype):
            self.transformer.to(device=device, dtype=dtype)
        return self

    def sampling_kwargs(self, given: dict[str, object]) -> dict[str, object]:
        """How to sample where some options are given."""
        return self.sampling_defaults | given

    def read_options(self, options: GenerateOptions) -> tuple[SamplingOptions, str | Drafter, AcceptanceRule]:
        """How to sample, what to draft with, and how to accept; the model's defaults where nothing is said."""
        for name in options.keys() - GenerateOptions.__annotations__.keys():
            if name in FOREIGN_OPTIONS:
                raise MmspecError(f"{type(self).__name__} takes no {name}: {FOREIGN_OPTIONS[name]}")
            parameters = inspect.signature(type(self).__call__).parameters.keys() - {"self", "options", "session"}
            raise unknown("option", name, [*parameters, *GenerateOptions.__annotations__])
        given = {name: value for name, value in options.items() if value is not None}
        sampling: dict = self.sampling_kwargs(given)
        drafter, rule = sampling.pop("drafter", None), acceptance(sampling.pop("acceptance", "exact"))
        sampling["logits_processor"] = [*self.processors, *sampling.get("logits_processor", ())]
        return SamplingOptions(**sampling), self.drafter if drafter is None else drafter, rule

    def load_drafter(self, session: Session, drafter: str | Drafter, prompts: Prompts, length: int) -> Run:
        """Get a drafter ready for up to `length` tokens after prompts like these."""
        return (session.runner or self.runner)(self.target, self.folder, drafter, prompts, length)

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: object) -> Self:
        """Load a bundled name, a folder or a hub id; `torch_dtype` (or `dtype`) is the transformer's.

        `device_map`, `max_memory`, `offload_folder`, `quantization_config`, `attn_implementation` and
        `trust_remote_code` are those of transformers' `from_pretrained`; code that comes with a model runs with the
        last alone. A model that is placed by `device_map`, or quantised, stays where transformers put it.
        Components and settings of `__init__` may be given instead of loaded; options that cannot be honoured are
        refused.
        """
        loading = pop_loading(options)
        folder, dtype, index = open_folder(cls, model, options, loading)
        path = folder / zoo.INDEX
        for name, kind in cls.settings.items():
            wrong = name in index and not isinstance(index[name], kind)
            if (wrong or (name in cls.required and name not in index)) and name not in options:
                raise MmspecError(f"{path}: {name} is {index.get(name)!r}: restore it from the model's source")
        parts = {name: index[name] for name in cls.settings if name in index} | options
        parts = cls.load_parts(folder, index, dtype, parts, loading) | parts
        try:
            pipe = cls(**parts)
        except (ValueError, TypeError, AttributeError) as error:
            raise MmspecError(f"{path if path.is_file() else folder}: {error}") from None
        pipe.folder = folder
        return pipe

    @classmethod
    @abstractmethod
    def load_parts(cls, folder: Path, index: dict, dtype: torch.dtype, components: dict, loading: Loading) -> dict:
        """The components that are not among `components`; `loading` are options of transformers' `from_pretrained`."""

    def save_pretrained(self, save_directory: str | Path, **options: object) -> None:
        """Save all components and copy what else the model's folder holds: drafters, card, recipe."""
        described = self.describe_parts()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        copy_companions(self.folder, folder)
        self.save_parts(folder, **options)
        if described is not None:
            index = {
                "_class_name": type(self).__name__,
                "transformer": ["transformers", type(self.transformer).__name__],
                **self.current_settings(),
                **described,
            }
            (folder / zoo.INDEX).write_text(json.dumps(index, indent=2) + "\n")
        rename_target(folder, self.target.weights_hash, self.weights_part)

    def describe_parts(self) -> dict | None:
        """What the index says beside the settings; None for a pipeline that writes its index itself."""
        return {}

    @abstractmethod
    def save_parts(self, folder: Path, **options: object) -> None:
        """Write the components."""


def model_class(entry: object, source: Path) -> type[PreTrainedModel]:
    """The model class of transformers that an index entry or a configuration names, the last word of it."""
    name = str(entry[-1]) if isinstance(entry, list) and entry else str(entry)
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise MmspecError(f"{source} names {entry}, which is no model class of transformers")
    return kind


def load_transformer(folder: Path, index: dict, dtype: torch.dtype, **loading: Unpack[Loading]) -> PreTrainedModel:
    """The model in `folder/transformer`, of the class that the index names."""
    kind = model_class(index.get("transformer"), folder / zoo.INDEX)
    return zoo.load_component(folder, "transformer", kind, dtype=dtype, **loading)


def deprecated_callback(callback: Callable[[Any], object] | None) -> None:
    """Warn of the callback that 0.1 had."""
    if callback is not None:
        warnings.warn("callback is deprecated: use callback_on_step_end", DeprecationWarning, stacklevel=3)
