"""Models of transformers from folders: the class and the family by the configuration alone, then the weights."""

from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from mmspec import zoo
from mmspec.errors import MmspecError, short
from mmspec.pipelines import quantized
from mmspec.pipelines.base import model_class
from mmspec.pipelines.families import read_config
from mmspec.pipelines.generation_config import read_generation_config
from mmspec.pipelines.loading import Loading
from mmspec.targets.registry import check_kind


def describe(folder: Path, trust_remote_code: bool = False) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The class and the configuration of the model in a folder, of which no weights are read.

    A model whose code comes with it is refused unless `trust_remote_code` says that this code may run. Raises
    MmspecError.
    """
    path = part(folder)
    file = path / "config.json"
    entries = read_config(path)
    names, own = entries.get("architectures"), entries.get("auto_map") or {}
    if not isinstance(names, list) or not names:
        found = f"says {names!r:.60}" if "architectures" in entries else "has no entry of that name"
        raise MmspecError(
            f'{file} must name the model\'s class in a list, "architectures", and {found}: restore it from '
            "the model's source"
        )
    name, code = names[0], own.get("AutoModelForCausalLM", "") if isinstance(own, dict) else None
    if not isinstance(code, str):
        raise MmspecError(f"{file} says auto_map {own!r:.60}: it must name classes; restore it from the model's source")
    kind: type[PreTrainedModel] | None = None
    try:
        kind = model_class(name, file)
    except MmspecError:
        if not code:
            raise
        if not trust_remote_code:
            raise MmspecError(
                f"{file} names {name}, whose code comes with the model: read it, then allow it to run by "
                "trust_remote_code=True (--trust-remote-code)"
            ) from None
    try:
        if kind is None:
            kind = get_class_from_dynamic_module(code, path)
            return kind, AutoConfig.from_pretrained(path, trust_remote_code=True)
        return kind, kind.config_class.from_pretrained(path)
    except Exception as error:  # classes of configurations raise anything, StrictDataclassError for one
        raise MmspecError(f"{file} does not load ({short(error)}): restore it from the model's source") from None


def part(folder: Path) -> Path:
    """Where the transformer of a model folder is: in a folder of its own, or beside everything else."""
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def check_family(folder: Path, trust_remote_code: bool = False) -> None:
    """Raise MmspecError for a model that mmspec does not read, by its configuration alone."""
    check_kind(*describe(folder, trust_remote_code))


def load_transformer(folder: Path, dtype: torch.dtype, **loading: Unpack[Loading]) -> PreTrainedModel:
    """The model class that a folder's config names, in `dtype`; quantised weights are read by `quantized`.

    `loading` are options of transformers' `from_pretrained` (`device_map`, `quantization_config`, ...).
    """
    kind, config = describe(folder, loading.pop("trust_remote_code", False))
    path = part(folder)
    read_generation_config(path)  # of one that is damaged, transformers says nothing
    if not (path / quantized.INDEX).exists():
        foreign = not (folder / zoo.INDEX).is_file()
        return zoo.load_component(path.parent, path.name, kind, foreign=foreign, dtype=dtype, **loading)
    try:
        generation = GenerationConfig.from_pretrained(path)
        state = quantized.load(path, dtype)
        options: dict[str, Any] = dict(config=config, state_dict=state, dtype=dtype, output_loading_info=True)
        model, report = kind.from_pretrained(None, **options, **loading)
    except MmspecError:
        raise
    except zoo.DAMAGED as error:
        raise MmspecError(
            f"{path} does not load as {kind.__name__} ({short(error)}): restore it from the model's source"
        ) from None
    zoo.check_report(report, path, path / "config.json", kind.__name__)
    model.generation_config = generation
    return model
