"""What a user calls: `mmspec.pipeline(task)`."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmspec.errors import MmspecError, unknown

if TYPE_CHECKING:
    import torch

    from mmspec.pipelines.base import Pipeline

# For each task, its pipeline and the bundled model that is its default.
TASKS = {
    "text-to-image": ("mmspec.pipelines.text_to_image:TextToImagePipeline", "emoji-64"),
    "text-to-speech": ("mmspec.pipelines.text_to_speech:TextToSpeechPipeline", "wren-86"),
    "image-text-to-text": ("mmspec.pipelines.image_text_to_text:ImageTextToTextPipeline", "magpie-135"),
}


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
    one, else the CPU, if None; `dtype` (or `torch_dtype`) is bf16, fp32, fp16 or fp64. Other options go to
    `from_pretrained`.
    """
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
    return kind.from_pretrained(model or default, torch_dtype=precision, **options).to(placement)


def task_of(folder: Path) -> str:
    """The task of a model folder, by the pipeline that its index names."""
    from mmspec import zoo

    if not (folder / zoo.INDEX).is_file():  # a folder of transformers
        return "image-text-to-text"
    name = zoo.read_index(folder).get("_class_name")
    for task, (path, _) in TASKS.items():
        if path.endswith(f":{name}"):
            return task
    raise MmspecError(
        f"{folder / zoo.INDEX} names {name!r}, which is no pipeline of mmspec: give a model for one of "
        f"{', '.join(TASKS)}"
    )
