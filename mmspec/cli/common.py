"""What the commands share: options, the console, devices and dtypes by name, quiet libraries, summaries, suites."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from mmspec.errors import MmspecError

if TYPE_CHECKING:
    import torch

    from mmspec.engine.stats import GenerationStats

console = Console(stderr=True, emoji=False)


def number(kind: type, what: str, metavar: str) -> tyro.constructors.PrimitiveConstructorSpec:
    """How the parser reads a number: with an error that says what was expected."""

    def read(texts: list[str]) -> Any:
        try:
            return kind(texts[0])
        except ValueError:
            raise ValueError(f"{texts[0]!r} is not {what}") from None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, kind | int),
        str_from_instance=lambda value: [str(value)],
    )


WHOLE, REAL = number(int, "a whole number", "N"), number(float, "a number", "X")

# Options as help shows them. Where nothing is the default, it is said in words.
Count = Annotated[int, WHOLE]
Fraction = Annotated[float, REAL]
Whole = Annotated[int | None, WHOLE, tyro.conf.arg(help_behavior_hint="")]
Real = Annotated[float | None, REAL, tyro.conf.arg(help_behavior_hint="")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Host = Annotated[str, tyro.conf.arg(metavar="HOST")]
Root = Annotated[str, tyro.conf.arg(metavar="ROOT", help_behavior_hint="")]
Strings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]
Names = Annotated[list[str], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]
Reals = Annotated[list[float] | None, tyro.conf.arg(metavar="X ...", help_behavior_hint="")]
Dtype = Annotated[str, tyro.conf.arg(metavar="DTYPE")]
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE")]
Model = Annotated[str, tyro.conf.arg(metavar="MODEL")]
Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]

# The benchmark's name of each task.
SUITES = {"image": "text-to-image", "speech": "text-to-speech", "vlm": "image-text-to-text"}


@dataclass(kw_only=True)
class SamplingFlags:
    """How to sample, draft and accept."""

    seed: Whole = None
    """Same seed, same output, whatever the drafter. Random if left out, and printed. Greedy output needs none."""
    temperature: Real = None
    """0 is greedy. The model's own default if left out."""
    top_k: Whole = None
    """Keep the k most probable tokens; 0 keeps all. The model's own default if left out, as of the next three."""
    top_p: Real = None
    """Keep the most probable tokens up to this mass; 1 keeps all."""
    min_p: Real = None
    """Keep the tokens that have this share of the most probable one's probability; 0 keeps all."""
    repetition_penalty: Real = None
    """Divide the scores of tokens that came before; 1 is none."""
    drafter: Name = None
    """A drafter by name (see mmspec info), folder or hub id; none is plain AR decoding. The model's own if left out."""
    acceptance: Annotated[str | None, tyro.conf.arg(metavar="RULE", help_behavior_hint="")] = None
    """exact (lossless, default), rejection (lossless in distribution), tolerance:N, typical:E,D or lexical:A (lossy,
    and said)."""

    @property
    def sampling_kwargs(self) -> dict:
        """These options, without the seed, as a pipeline takes them."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "drafter")
        return {name: getattr(self, name) for name in names} | {"acceptance": self.rule}

    def check_sampling(self) -> None:
        """Raise MmspecError for values that cannot be, before any model is loaded."""
        from mmspec.engine.ranges import check_ranges
        from mmspec.pipelines.request import row_seeds

        check_ranges({key: value for key, value in self.sampling_kwargs.items() if value is not None})
        row_seeds(0 if self.seed is None else self.seed, None, 1)
        if self.rule != "exact":
            from mmspec.engine.accept import acceptance

            acceptance(self.rule)

    @property
    def rule(self) -> str:
        """The acceptance rule by name."""
        return "exact" if self.acceptance is None else self.acceptance

    def facts(self, defaults: dict[str, object]) -> dict[str, object]:
        """These options, or the model's defaults, without what the statistics say, for the metadata of a file."""
        from mmspec.pipelines.generation_config import NEUTRAL

        plain = {"temperature": 1.0} | NEUTRAL | defaults
        given = {name: getattr(self, name) for name in plain}
        return {name: plain[name] if value is None else value for name, value in given.items()}


@dataclass(kw_only=True)
class ModelFlags:
    """Where and in which precision a model runs, and whether anything is said."""

    dtype: Dtype = "bf16"
    """bf16, fp32, fp64 or fp16."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is a GPU if there is one."""
    deterministic: Switch = False
    """Plain decoding's tokens bit for bit in bf16 on a CPU: drafts are chains, and fewer tokens come in a round."""
    compile: Switch = False
    """Compile passes by torch.compile: minutes the first time, some seconds in every later process; for long work."""
    quiet: Switch = False
    """No progress bar and no summary."""


def summary(stats: "GenerationStats", seed: int) -> str:
    """Speed, acceptance, drafter, rule and whether it is lossless, and the seed, in one line."""
    return (
        f"{stats.tokens_per_second:.0f} tokens/s, mean acceptance length {stats.mean_acceptance_length:.2f}, "
        f"{drafter_of(stats)}, {rule_of(stats)}, seed {seed}"
    )


def drafter_of(stats: "GenerationStats") -> str:
    """The drafter, and whether its drafts were cut to chains."""
    return f"{stats.drafter} (chains only)" if stats.chains_only else stats.drafter


def rule_of(stats: "GenerationStats") -> str:
    """The acceptance rule, and whether it is lossless."""
    return f"{stats.acceptance} ({'lossless' if stats.lossless else 'NOT lossless'})"


def torch_dtype(name: str) -> "torch.dtype":
    """A dtype by name."""
    from mmspec.placement import dtype_of

    return dtype_of(name)


def torch_device(name: str) -> str:
    """A device by name; auto is a GPU if there is one."""
    from mmspec.placement import device_of

    return str(device_of(None if name == "auto" else name))


def say(text: str) -> None:
    """A line on standard error: broken between words in a terminal, and not at all elsewhere."""
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


@contextmanager
def loading(model: str, quiet: bool) -> Iterator[None]:
    """Say in a terminal that a model is being loaded, for as long as it is."""
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(f"loading {model}"):
        yield


def check_model(
    model: str, task: str, drafter: str | None, dtype: str, device: str, trust_remote_code: bool = False
) -> Path:
    """The folder of a model. Raises MmspecError for a wrong name of a model, a drafter, a dtype or a device, and for a
    model of another task, before anything is loaded.
    """
    from mmspec import zoo
    from mmspec.drafters.table import check_name
    from mmspec.pipelines import check_task
    from mmspec.placement import check_names

    check_names(dtype, device)
    check = partial(check_task, task=task, trust_remote_code=trust_remote_code)
    folder = zoo.resolve(model, allow_transformers=True, check=check)
    if drafter is not None:
        check_name(drafter, folder)
    check(folder)
    return folder


def quiet_libraries() -> None:
    """No progress bars, advice or warnings from the libraries below; warnings of mmspec in one line each."""
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if "diffusers" in sys.modules:  # it takes long to import, and not every command needs it
        import diffusers

        diffusers.logging.set_verbosity_error()
        diffusers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module="mmspec")

    def show(message: Warning | str, *rest: object, **more: object) -> None:
        say(f"mmspec: warning: {message}")

    warnings.showwarning = show


def run_function(main: Callable[..., None]) -> None:
    """Run a function as a command of its own, its parameters as flags; MmspecError is printed and exits 2."""
    try:
        tyro.cli(main)
    except MmspecError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from None


def software() -> str:
    """Versions of what a result depends on, in one line."""
    from mmspec.versions import versions

    return ", ".join(f"{name} {version}" for name, version in versions().items())


def suite(task: str) -> ModuleType:
    """The suite of the benchmark for a task."""
    from importlib import import_module

    name = {task: name for name, task in SUITES.items()}[task]
    try:
        return import_module(f"mmspec.bench.{name}")
    except ModuleNotFoundError as error:
        raise MmspecError(f"the benchmark needs {error.name}: pip install 'mmspec[speech]'") from None
