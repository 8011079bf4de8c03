"""Drafters by name, loaded for a target."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmspec.drafters import layouts
from mmspec.drafters.base import Drafter, TrainedDrafter
from mmspec.drafters.layouts import Files
from mmspec.drafters.table import (
    RELEASED,
    TABLE,
    Entry,
    check_name,
    folder_of,
    names,
    parts_of,
    usable,
    without_weights,
)
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


@dataclass(frozen=True, slots=True)
class Stored:
    """A drafter by name, path or hub id, of which no weights are read yet: its class, its folder (None for one without
    weights), its configuration, and its files where they are in a public layout.
    """

    name: str
    cls: type[Drafter]
    folder: Path | None
    config: dict
    files: Files | None = None

    def read(self, target: Target) -> TrainedDrafter:
        """The drafter, with its weights as they are stored. Raises MmspecError for one that does not fit the target."""
        cls, folder, own = self.cls, self.folder, self.config.get("target")
        assert issubclass(cls, TrainedDrafter) and folder is not None, f"{self.name} has no weights"
        if self.files is not None:
            with _named(folder):
                return cls.from_released(self.files, target)
        _check_shape(self.name, self.config, target)
        drafter = _load_weights(self.name, folder, cls)
        if own and target.weights_hash and own != target.weights_hash:
            warnings.warn(
                f"drafter {self.name!r} was trained on other weights of this target ({own} and not "
                f"{target.weights_hash}): exact, but slow",
                stacklevel=2,
            )
        return drafter


def find(name: str, folder: Path | None) -> Stored:
    """The drafter of that name, path or hub id; a name has its weights in the model's `folder`.

    Raises MmspecError for one that is not known, that has no weights, or whose layout is not read.
    """
    check_name(name, folder)
    if parts := parts_of(name):
        raise MmspecError(f"drafter {name!r} has no files of its own: name {parts[1]}")
    path = folder_of(name, folder)
    config = _read_config(name, path) if path else {}
    if path and "kind" not in config:
        with _named(path):
            if (public := layouts.find(path, folder)) is not None:
                return Stored(name, public[0].load(), path, config, public[1])
    kind, kinds = config.get("kind", Path(name).name), names() | RELEASED
    if kind not in kinds:
        raise MmspecError(
            f"drafter {name!r}: its config.json names no known kind ({config.get('kind')!r}): known are "
            f"{', '.join(names())}, and the layouts {', '.join(layouts.read_layouts())}"
        )
    cls = kinds[kind].load()
    if issubclass(cls, TrainedDrafter) and (path is None or not config):
        raise without_weights(name, folder)
    return Stored(name, cls, path, config)


def by_name(name: str, folder: Path | None, target: Target, **options: object) -> Drafter:
    """The drafter of that name, path or hub id, with its weights if its kind has any, and `options` set.

    A name has its weights in the model's `folder`.
    """
    if parts := parts_of(name):
        check_name(name, folder)
        outer: Any = TABLE[parts[0]].load()
        return outer(by_name(parts[1], folder, target), **options)
    stored = find(name, folder)
    if not issubclass(stored.cls, TrainedDrafter):
        return stored.cls(**options)
    return stored.read(target).to(target.device, target.dtype).eval().configure(**options)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever numbers and words that others wrote lead to, as an error that names their folder."""
    try:
        yield
    except MmspecError:
        raise
    except Exception as error:
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
