"""Drafters by name; anything that follows `base.Drafter` may be passed instead of a name."""

import json
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mmspec import zoo
from mmspec.drafters.cost import measured
from mmspec.errors import MmspecError, unknown

TABLE = {
    "none": "mmspec.drafters.none:NoDrafter",
    "lookup": "mmspec.drafters.lookup:LookupDrafter",
    "jacobi": "mmspec.drafters.jacobi:JacobiDrafter",
    "medusa": "mmspec.drafters.medusa:MedusaDrafter",
    "vadusa": "mmspec.drafters.vadusa:VadusaDrafter",
    "hawk": "mmspec.drafters.hawk:HawkDrafter",
    "hawk-path": "mmspec.drafters.hawk_path:HawkPathDrafter",
    "msd": "mmspec.drafters.msd:MsdDrafter",
}
TRAINED = ("medusa", "vadusa", "hawk", "hawk-path", "msd")


def names() -> dict[str, str]:
    """Built-in drafters and those that other packages register under `mmspec.drafters`."""
    return TABLE | {
        entry.name: entry.value for entry in entry_points(group="mmspec.drafters") if entry.name not in TABLE
    }


def usable(folder: Path | None) -> list[str]:
    """Names that load for a model: drafters without weights, other packages' too, and those that its folder has weights for."""
    trained = zoo.drafters(folder) if folder else []
    return [name for name in names() if name not in TRAINED and name not in trained] + trained


def load(name: Any, folder: Path | None, target: Any, prompts: Any = None, length: int = 256, **options: Any) -> Any:
    """A drafter ready for `target`: by name, from `folder/drafters/<name>` if it has weights, or an instance.

    A drafter that spends a node budget, and has no fixed one, is told what passes cost here, measured after `prompts`,
    if given, for `length` new tokens.
    """
    drafter = by_name(name, folder, target, **options) if isinstance(name, str) else name
    if not hasattr(drafter, "draft"):
        raise MmspecError(
            f"drafter is a {type(drafter).__name__}, which drafts nothing: give a name, such as none, or a Drafter"
        )
    if prompts is not None and hasattr(drafter, "cost") and not drafter.nodes:
        drafter.cost = measured(target, prompts, str(folder), length)
    return drafter


def by_name(name: str, folder: Path | None, target: Any, **options: Any) -> Any:
    """The drafter of that name, with its weights from `folder` if its kind has any."""
    known = names()
    folders = (
        {path.name for path in (folder / "drafters").iterdir()} if folder and (folder / "drafters").is_dir() else set()
    )
    if name not in known and name not in folders:
        raise unknown("drafter", name, {*known, *folders})
    config = {}
    path = folder / "drafters" / name if folder else None
    if path and (path / "config.json").exists():
        try:
            config = json.loads((path / "config.json").read_text())
        except ValueError as error:
            raise MmspecError(
                f"drafter {name!r}: {path / 'config.json'} is truncated or no JSON ({error}): restore it or train again"
            ) from None
    kind = "msd" if "num_attention_heads" in config else config.get("kind", name)
    module, _, attribute = known.get(kind, "").partition(":")
    if not module:
        raise MmspecError(
            f"drafter {name!r}: its config.json names no known kind ({config.get('kind')!r}): known are {', '.join(known)}"
        )
    built: Any = getattr(import_module(module), attribute)
    if not hasattr(built, "from_pretrained"):
        return built(**options)
    if path is None or not (path / "config.json").exists():
        raise MmspecError(
            f"drafter {name!r} has no weights for this model: train it with `mmspec train`, or use one of {', '.join(sorted(usable(folder)))}"
        )
    for key, wanted in (
        ("hidden_size", target.hidden_size),
        ("vocabulary", target.vocabulary_size),
        ("stride", getattr(getattr(target, "grid", None), "stride", None)),
    ):
        if wanted is not None and key in config and config[key] not in (wanted, 0):
            raise MmspecError(
                f"drafter {name!r} was trained for another target: its {key} is {config[key]}, this target's is {wanted}; train one for this target"
            )
    if "num_attention_heads" in config:  # not one of ours: the layout that the authors of MSD publish
        return place_and_configure(built.from_released(path), name, target, options)
    config.pop("kind", None)
    if config.get("target") and getattr(target, "hash", None) and config["target"] != target.weights_hash:
        warnings.warn(
            f"drafter {name!r} was trained on other weights of this target ({config['target']} and not {target.weights_hash}): exact, but slow",
            stacklevel=2,
        )
    try:
        with redirect_stdout(None):  # the hub's mixin prints, and standard output may be a pipe for sound
            drafter = built.from_pretrained(path, strict=True)
    except (SafetensorError, RuntimeError, OSError, TypeError) as error:
        raise MmspecError(
            f"drafter {name!r}: the files in {path} are truncated or foreign ({error}): restore them or train again"
        ) from None
    return place_and_configure(drafter, name, target, options)


def place_and_configure(drafter: Any, name: str, target: Any, options: dict[str, Any]) -> Any:
    """The drafter where the target is, in its dtype, with options set."""
    drafter = drafter.to(target.device, target.dtype).eval()
    for key, value in options.items():
        if not hasattr(drafter, key):
            raise unknown(f"option of drafter {name!r}", key, vars(drafter).keys() - vars(torch.nn.Module()).keys())
        setattr(drafter, key, value)
    return drafter
