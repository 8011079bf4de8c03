"""What the pipelines share in reading and writing model folders."""

import inspect
import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
from transformers import AutoProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.quantization_config import QuantizationConfigMixin

from mmspec import zoo
from mmspec.errors import MmspecError, short, unknown
from mmspec.pipelines import check_task
from mmspec.placement import dtype_of

if TYPE_CHECKING:
    from mmspec.pipelines.base import Pipeline


class Loading(TypedDict, total=False):
    """Options of transformers' `from_pretrained` that are passed on to it."""

    device_map: str | dict[str, str]
    max_memory: dict[str | int, str]
    offload_folder: str
    quantization_config: QuantizationConfigMixin
    attn_implementation: str
    trust_remote_code: bool


LOADING_OPTIONS = tuple(Loading.__annotations__)
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
COMPANIONS = ("README.md", "recipe.yaml", zoo.PROMPTS, zoo.VOCABULARY, zoo.RESULTS)


def pop_loading(options: dict) -> Loading:
    """Take the options of transformers' `from_pretrained` out of others."""
    return cast(Loading, {name: options.pop(name) for name in LOADING_OPTIONS if name in options})


def open_folder(
    cls: "type[Pipeline]", model: str | Path, options: dict, loading: Loading
) -> tuple[Path, torch.dtype, dict]:
    """The folder of a model for a pipeline class, the dtype that `options` ask for, and its index (empty without one).

    Options that `from_pretrained` honours itself are taken out of `options`; any that `cls` does not know is refused.
    """
    hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    task, trusted = cls.article.rpartition(" ")[2], bool(loading.get("trust_remote_code"))
    check = partial(check_task, task=task, trust_remote_code=trusted) if cls.allow_transformers else None
    folder = zoo.resolve(model, allow_transformers=cls.allow_transformers, check=check, **hub)
    dtype = dtype_of(options.pop("torch_dtype", None) or options.pop("dtype", None) or torch.float32)
    parameters = inspect.signature(cls.__init__).parameters.keys() - {"self"}
    for name in options.keys() - parameters:
        raise unknown("option of from_pretrained", name, [*parameters, *HUB_OPTIONS, *LOADING_OPTIONS, "torch_dtype"])
    if cls.allow_transformers and not (folder / zoo.INDEX).is_file():
        return folder, dtype, {}
    return folder, dtype, zoo.check_kind(folder, cls.__name__, cls.article)


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


def load_processor(path: Path) -> Any:
    """The processor in a folder, the tokenizer of a model that has none."""
    try:
        return AutoProcessor.from_pretrained(path)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise MmspecError(
            f"{path} has no processor that loads ({short(error)}): restore it from the model's source"
        ) from None


def copy_companions(source: Path | None, folder: Path) -> None:
    """Copy what a model's folder holds beside its components: drafters, card, recipe, prompts and their pictures."""
    if source is None or source.resolve() == folder.resolve():
        return
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for name in ("drafters", "samples"):
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)


def rename_target(folder: Path, weights_hash: str, name: str) -> None:
    """Tell the drafters of the target `weights_hash` its new hash: saved in another dtype, the same weights have
    another. They lie in the part `name` of the folder, or in the folder itself.
    """
    for path in folder.glob("drafters/*/config.json"):
        config = json.loads(path.read_text())
        if config.get("target") == weights_hash:
            part = folder / name
            target = zoo.weights_hash(part if part.is_dir() else folder)
            path.write_text(json.dumps(config | {"target": target}, indent=2) + "\n")
