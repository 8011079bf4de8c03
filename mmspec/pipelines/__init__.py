"""What a user calls: `mmspec.pipeline(task)`."""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from mmspec.errors import MmspecError, unknown

if TYPE_CHECKING:
    import torch

    from mmspec.pipelines.base import Pipeline
    from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
    from mmspec.pipelines.text_to_image import TextToImagePipeline
    from mmspec.pipelines.text_to_speech import TextToSpeechPipeline

# For each task, its pipeline and the bundled model that is its default.
TASKS = {
    "text-to-image": ("mmspec.pipelines.text_to_image:TextToImagePipeline", "emoji-64"),
    "text-to-speech": ("mmspec.pipelines.text_to_speech:TextToSpeechPipeline", "wren-86"),
    "image-text-to-text": ("mmspec.pipelines.image_text_to_text:ImageTextToTextPipeline", "magpie-135"),
}


@overload
def pipeline(
    task: Literal["text-to-image"],
    model: str | Path | None = None,
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype" = "bf16",
    **options: Any,
) -> "TextToImagePipeline": ...


@overload
def pipeline(
    task: Literal["text-to-speech"],
    model: str | Path | None = None,
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype" = "bf16",
    **options: Any,
) -> "TextToSpeechPipeline": ...


@overload
def pipeline(
    task: Literal["image-text-to-text"],
    model: str | Path | None = None,
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype" = "bf16",
    **options: Any,
) -> "ImageTextToTextPipeline": ...


@overload
def pipeline(
    task: str,
    model: str | Path | None = None,
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype" = "bf16",
    **options: Any,
) -> "Pipeline": ...


def pipeline(
    task: str,
    model: str | Path | None = None,
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype" = "bf16",
    **options: Any,
) -> "Pipeline":
    """The pipeline of a task, loaded and placed.

    `model` is a bundled name, a folder or a hub id, the task's own bundled model if None; `device` is a GPU if there is
    one, else the CPU, if None; `dtype` (or `torch_dtype`) is bf16, fp32, fp16 or fp64. With `compile`, passes run as
    compiled graphs (`Pipeline.compiled`). Other options go to `from_pretrained`.
    """
    if task == "text-generation":
        raise MmspecError(
            "there is no task 'text-generation': chat with a language model by 'image-text-to-text', or continue a "
            "text by mmspec.generate (docs/adding-a-target.md)"
        )
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    from mmspec.placement import check_pair, device_of, dtype_of

    path, default = TASKS[task]
    module, _, name = path.partition(":")
    placement, precision = device_of(device), dtype_of(options.pop("torch_dtype", dtype))
    check_pair(placement, precision)
    try:
        kind: type[Pipeline] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise MmspecError(f"{task} needs {error.name}: pip install 'mmspec[speech]'") from None
    compiled = bool(options.pop("compile", False))
    pipe = kind.from_pretrained(model or default, torch_dtype=precision, **options)
    pipe = pipe if pipe.placed else pipe.to(placement)
    if compiled:
        pipe.compiled = True
    return pipe


def check_task(folder: Path, task: str, trust_remote_code: bool = False) -> None:
    """Raise MmspecError for a model of another task, or of a family that is refused, without loading anything of it."""
    from mmspec import zoo
    from mmspec.pipelines.families import artist_family, check_speaker, draws

    if task == "text-to-image" and draws(folder):
        return
    has_index = (folder / zoo.INDEX).is_file()
    if not has_index and task == "text-to-image":
        artist_family(folder)
    elif not has_index and task == "text-to-speech":
        check_speaker(folder)
    elif not has_index:
        from mmspec.pipelines.transformer import check_family

        check_family(folder, trust_remote_code)
    else:
        kind = TASKS[task][0].rpartition(":")[2]
        zoo.check_kind(folder, kind, f"{'an' if task[0] in 'aeiou' else 'a'} {task}")


def task_of(folder: Path) -> str:
    """The task of a model folder, by the pipeline that its index names, or by its family."""
    from mmspec import zoo
    from mmspec.pipelines.families import draws, speaker_family

    if draws(folder):
        return "text-to-image"
    if not (folder / zoo.INDEX).is_file():  # a folder of transformers
        return "text-to-speech" if speaker_family(folder) else "image-text-to-text"
    name = zoo.read_index(folder).get("_class_name")
    for task, (path, _) in TASKS.items():
        if path.endswith(f":{name}"):
            return task
    raise MmspecError(
        f"{folder / zoo.INDEX} names {name!r}, which is no pipeline of mmspec: give a model for one of "
        f"{', '.join(TASKS)}"
    )


def reads_pictures(folder: Path) -> bool:
    """Whether the model of an image-text-to-text folder takes pictures, by the class that its configuration names."""
    path = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        return not json.loads((path / "config.json").read_text())["architectures"][0].endswith("ForCausalLM")
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return True  # loading says what is wrong
