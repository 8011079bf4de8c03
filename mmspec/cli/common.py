"""What the commands share: the console, devices and dtypes by name, quiet libraries, and the benchmark's suites."""

from types import ModuleType

from rich.console import Console

from mmspec.errors import MmspecError

console = Console(stderr=True, emoji=False)

# The benchmark's name of each task.
SUITES = {"image": "text-to-image", "speech": "text-to-speech", "vlm": "image-text-to-text"}


def torch_dtype(name: str):
    from mmspec.placement import dtype_of

    return dtype_of(name)


def torch_device(name: str) -> str:
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
    warnings.showwarning = lambda message, *rest, **more: console.print(
        f"mmspec: warning: {message}", markup=False, soft_wrap=True
    )


def suite(task: str) -> ModuleType:
    """The suite of the benchmark for a task."""
    from importlib import import_module

    name = {task: name for name, task in SUITES.items()}[task]
    try:
        return import_module(f"mmspec.bench.{name}")
    except ModuleNotFoundError as error:
        raise MmspecError(f"the benchmark needs {error.name}: pip install 'mmspec[speech]'") from None
