"""What the pipelines share in reading and writing model folders."""

import inspect
import json
import shutil
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmspec import zoo
from mmspec.errors import MmspecError, unknown
from mmspec.placement import dtype_of

# Tokenizers keep settings between calls: one thread at a time.
TOKENIZER_LOCK = Lock()

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
COMPANIONS = ("README.md", "recipe.yaml", zoo.PROMPTS)


def opened(
    cls: type, task: str, model: str | Path, options: dict[str, Any], bare: bool = False
) -> tuple[Path, torch.dtype, dict]:
    """The folder of a model for a pipeline class, the dtype that `options` ask for, and its index (empty for a `bare` folder of transformers).

    Options that `from_pretrained` honours itself are taken out of `options`; any that `cls` does not know is refused.
    """
    folder = zoo.resolve(model, bare=bare, **{key: options.pop(key) for key in HUB_OPTIONS if key in options})
    dtype = dtype_of(options.pop("torch_dtype", None) or options.pop("dtype", None) or torch.float32)
    known = inspect.signature(cls.__init__).parameters.keys() - {"self"}  # type: ignore[misc]
    for name in options.keys() - known:
        raise unknown("option of from_pretrained", name, [*known, *HUB_OPTIONS, "torch_dtype"])
    if bare and not (folder / zoo.INDEX).is_file():
        return folder, dtype, {}
    index = zoo.read_index(folder)
    if index.get("_class_name") != cls.__name__:
        raise MmspecError(f"{folder} holds a {index.get('_class_name')}, not a {cls.__name__}: give {task} model")
    return folder, dtype, index


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The text tokenizer of a model folder."""
    path = folder / "tokenizer"
    if not (path / "tokenizer.json").is_file():
        raise MmspecError(f"{path / 'tokenizer.json'} is missing: restore it from the model's source")
    try:
        return PreTrainedTokenizerFast.from_pretrained(path)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise MmspecError(
            f"{path / 'tokenizer.json'} does not load ({error}): restore it from the model's source"
        ) from None


def copy_companions(folder: Path | None, goal: Path) -> None:
    """What a model's folder holds beside its components: drafters, card, recipe, prompts and their pictures."""
    if folder is None or folder.resolve() == goal.resolve():
        return
    for name in COMPANIONS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, goal / name)
    for name in ("drafters", "samples"):
        if (folder / name).is_dir():
            shutil.copytree(folder / name, goal / name, dirs_exist_ok=True)


def rename_target(goal: Path, name: str) -> None:
    """Saved in another dtype the same weights have another name: tell it to the drafters of the target `name`."""
    for path in goal.glob("drafters/*/config.json"):
        config = json.loads(path.read_text())
        if config.get("target") == name:
            path.write_text(json.dumps(config | {"target": zoo.weights_hash(goal / "transformer")}, indent=2) + "\n")
