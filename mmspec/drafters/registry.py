"""Drafters by name, loaded for a target."""

import json
import warnings
from pathlib import Path

from safetensors import SafetensorError

from mmspec.drafters import layouts
from mmspec.drafters.base import Drafter, TrainedDrafter
from mmspec.drafters.table import RELEASED, TABLE, Entry, check_name, folder_of, names, usable, without_weights
from mmspec.engine.cost import measured
from mmspec.errors import MmspecError, short
from mmspec.targets.base import Prompts, Target

__all__ = ["TABLE", "Entry", "by_name", "load", "names", "usable"]


def load(
    drafter: object,
    folder: Path | None,
    target: Target,
    prompts: Prompts | None = None,
    length: int = 256,
    **options: object,
) -> Drafter:
    """A drafter ready for `target`: by name, from `folder/drafters/<name>` if it has weights, or an instance.

    With `prompts`, a drafter whose number of nodes is not fixed is told what passes cost here, measured after them for
    `length` new tokens. Raises MmspecError for what is neither a name nor a drafter.
    """
    loaded = by_name(drafter, folder, target, **options) if isinstance(drafter, str) else drafter
    if not isinstance(loaded, Drafter):
        raise MmspecError(
            f"drafter is a {type(loaded).__name__}, which drafts nothing: give a name, such as none, or a Drafter"
        )
    if prompts is not None and loaded.max_nodes and not loaded.nodes:
        loaded.cost = measured(target, prompts, str(folder), length)
    return loaded


def by_name(name: str, folder: Path | None, target: Target, **options: object) -> Drafter:
    """The drafter of that name, path or hub id, with its weights if its kind has any, and `options` set.

    A name has its weights in the model's `folder`.
    """
    check_name(name, folder)
    path = folder_of(name, folder)
    config = _read_config(name, path) if path else {}
    if path and "kind" not in config and (public := _public(path, folder, target)) is not None:
        return public.to(target.device, target.dtype).eval().configure(**options)
    kind, kinds = config.get("kind", Path(name).name), names() | RELEASED
    if kind not in kinds:
        raise MmspecError(
            f"drafter {name!r}: its config.json names no known kind ({config.get('kind')!r}): known are "
            f"{', '.join(names())}, and the layouts {', '.join(layouts.read_layouts())}"
        )
    cls = kinds[kind].load()
    if not issubclass(cls, TrainedDrafter):
        return cls(**options)
    if path is None or not config:
        raise without_weights(name, folder)
    _check_shape(name, config, target)
    drafter = _load_weights(name, path, cls)
    if config.get("target") and target.weights_hash and config["target"] != target.weights_hash:
        warnings.warn(
            f"drafter {name!r} was trained on other weights of this target "
            f"({config['target']} and not {target.weights_hash}): exact, but slow",
            stacklevel=2,
        )
    drafter = drafter.to(target.device, target.dtype).eval()
    return drafter.configure(**options)


def _public(path: Path, folder: Path | None, target: Target) -> TrainedDrafter | None:
    """The drafter of a published layout in `path`, None if that holds none."""
    try:
        found = layouts.find(path, folder)
        return found and found[0].load().from_released(found[1], target)
    except MmspecError:
        raise
    except Exception as error:  # whatever numbers and words that others wrote lead to
        raise MmspecError(
            f"drafter {str(path)!r}: {path / 'config.json'} and its tensors do not describe a drafter "
            f"({type(error).__name__}: {short(error)}): restore them from their source"
        ) from None


def _read_config(name: str, path: Path) -> dict:
    try:
        return json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise MmspecError(
            f"drafter {name!r}: {path / 'config.json'} is missing, truncated or no JSON ({error}): restore it or "
            "train again"
        ) from None


def _check_shape(name: str, config: dict, target: Target) -> None:
    """Raise MmspecError for a drafter of a target of another size."""
    shape = {
        "hidden_size": target.hidden_size,
        "target_size": target.hidden_size,
        "vocabulary": target.vocabulary_size,
        "stride": target.grid.stride if target.grid else None,
    }
    for key, size in shape.items():
        if size is not None and key in config and config[key] not in (size, 0):
            raise MmspecError(
                f"drafter {name!r} was trained for another target: its {key} is {config[key]}, this target's is "
                f"{size}; "
                "train one for this target"
            )


def _load_weights(name: str, path: Path, cls: type[TrainedDrafter]) -> TrainedDrafter:
    try:
        return cls.from_pretrained(path)
    except (SafetensorError, RuntimeError, OSError, TypeError) as error:
        raise MmspecError(
            f"drafter {name!r}: the files in {path} are truncated or foreign ({error}): restore them or train again"
        ) from None
