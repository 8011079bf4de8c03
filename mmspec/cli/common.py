"""What the commands share: options, the console, devices and dtypes by name, quiet libraries, summaries, suites."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from rich.console import Console

from mmspec.errors import MmspecError

if TYPE_CHECKING:
    import torch

    from mmspec.engine.stats import GenerationStats

console = Console(stderr=True, emoji=False)

# The benchmark's name of each task.
SUITES = {"image": "text-to-image", "speech": "text-to-speech", "vlm": "image-text-to-text"}


@dataclass(kw_only=True)
class SamplingFlags:
    """How to sample, draft and accept."""

    seed: int | None = None
    """Same seed, same output, whatever the drafter. Random if left out, and printed."""
    temperature: float | None = None
    """0 is greedy. The model's own default if left out."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens up to this mass."""
    min_p: float = 0.0
    """Keep the tokens that have this share of the most probable one's probability."""
    repetition_penalty: float = 1.0
    """Divide the scores of tokens that came before; 1 is none."""
    drafter: str | None = None
    """A drafter by name (see mmspec info); none is plain AR decoding. The model's own default if left out."""
    acceptance: str | None = None
    """exact (lossless, the default), rejection (lossless in law), tolerance:N or typical:E,D (lossy, and the result
    says so).
    """

    @property
    def sampling_kwargs(self) -> dict:
        """These options, without the seed, as a pipeline takes them."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "drafter")
        return {name: getattr(self, name) for name in names} | {"acceptance": self.rule}

    @property
    def rule(self) -> str:
        """The acceptance rule by name."""
        return "exact" if self.acceptance is None else self.acceptance

    def facts(self, default_temperature: float) -> dict[str, object]:
        """These options, without what the statistics say, for the metadata of a file."""
        names = ("top_k", "top_p", "min_p", "repetition_penalty")
        temperature = default_temperature if self.temperature is None else self.temperature
        return {"temperature": temperature} | {name: getattr(self, name) for name in names}


@dataclass(kw_only=True)
class ModelFlags:
    """Where and in which precision a model runs, and whether anything is said."""

    dtype: str = "bf16"
    """bf16, fp32, fp64 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    quiet: bool = False
    """No progress bar and no summary."""


def summary(stats: "GenerationStats", seed: int) -> str:
    """Speed, acceptance, drafter, rule and whether it is lossless, and the seed, in one line."""
    lossless = "lossless" if stats.lossless else "NOT lossless"
    return (
        f"{stats.tokens_per_second:.0f} tokens/s, mean acceptance length {stats.mean_acceptance_length:.2f}, "
        f"{stats.drafter}, {stats.acceptance} ({lossless}), seed {seed}"
    )


def torch_dtype(name: str) -> "torch.dtype":
    """A dtype by name."""
    from mmspec.placement import dtype_of

    return dtype_of(name)


def torch_device(name: str) -> str:
    """A device by name; auto is a GPU if there is one."""
    from mmspec.placement import device_of

    return str(device_of(None if name == "auto" else name))


def quiet_libraries() -> None:
    """No progress bars, advice or warnings from the libraries below; warnings of mmspec in one line each."""
    import warnings

    import diffusers
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module="mmspec")

    def show(message: Warning | str, *rest: object, **more: object) -> None:
        console.print(f"mmspec: warning: {message}", markup=False, soft_wrap=True)

    warnings.showwarning = show


def run_function(main: Callable[..., None]) -> None:
    """Run a function as a command of its own, its parameters as flags; MmspecError is printed and exits 2."""
    import tyro

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
