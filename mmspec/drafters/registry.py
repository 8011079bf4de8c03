"""Drafters by name: the table, other packages' entry points, and loading for a target."""

import json
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from safetensors import SafetensorError

from mmspec import zoo
from mmspec.drafters.base import Drafter, TrainedDrafter
from mmspec.engine.cost import measured
from mmspec.errors import MmspecError, unknown
from mmspec.targets.base import Prompts, Target


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a drafter's class is (`module:Class`), and whether it is trained for a target."""

    path: str
    trained: bool = False

    def load(self) -> type[Drafter]:
        """The class. Raises MmspecError if there is none."""
        module, _, name = self.path.partition(":")
        try:
            kind = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MmspecError(f"the drafter {self.path} does not load: {error}") from None
        if not (isinstance(kind, type) and issubclass(kind, Drafter)):
            raise MmspecError(f"{self.path} is no drafter: make it a subclass of mmspec.drafters.base.Drafter")
        return kind


TABLE = {
    "none": Entry("mmspec.drafters.none:NoDrafter"),
    "lookup": Entry("mmspec.drafters.lookup:LookupDrafter"),
    "jacobi": Entry("mmspec.drafters.jacobi:JacobiDrafter"),
    "medusa": Entry("mmspec.drafters.medusa:MedusaDrafter", trained=True),
    "vadusa": Entry("mmspec.drafters.vadusa:VadusaDrafter", trained=True),
    "hawk": Entry("mmspec.drafters.hawk:HawkDrafter", trained=True),
    "hawk-path": Entry("mmspec.drafters.hawk_path:HawkPathDrafter", trained=True),
    "msd": Entry("mmspec.drafters.msd:MsdDrafter", trained=True),
}


def names() -> dict[str, Entry]:
    """Built-in drafters and those that other packages register under `mmspec.drafters`."""
    others = entry_points(group="mmspec.drafters")
    return TABLE | {entry.name: Entry(entry.value) for entry in others if entry.name not in TABLE}


def usable(folder: Path | None) -> list[str]:
    """Names that load for a model: drafters that need no training, and those that its folder has weights for."""
    trained = zoo.drafters(folder) if folder else []
    return [name for name, entry in names().items() if not entry.trained and name not in trained] + trained


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
    """The drafter of that name, with its weights from `folder` if its kind has any, and `options` set."""
    path = folder / "drafters" / name if folder else None
    in_folder = {entry.name for entry in path.parent.iterdir()} if path and path.parent.is_dir() else set()
    if name not in names() and name not in in_folder:
        raise unknown("drafter", name, {*names(), *in_folder})
    config = _read_config(name, path) if path and (path / "config.json").exists() else {}
    # A configuration with the field names of LLaMA is of the layout that the authors of MSD publish.
    released = "num_attention_heads" in config
    kind = "msd" if released else config.get("kind", name)
    if kind not in names():
        raise MmspecError(
            f"drafter {name!r}: its config.json names no known kind ({config.get('kind')!r}): known are "
            f"{', '.join(names())}"
        )
    cls = names()[kind].load()
    if not issubclass(cls, TrainedDrafter):
        return cls(**options)
    if path is None or not config:
        raise MmspecError(
            f"drafter {name!r} has no weights for this model: train it with `mmspec train`, "
            f"or use one of {', '.join(sorted(usable(folder)))}"
        )
    _check_shape(name, config, target)
    drafter = cls.from_released(path) if released else _load_weights(name, path, cls)
    if not released and config.get("target") and target.weights_hash and config["target"] != target.weights_hash:
        warnings.warn(
            f"drafter {name!r} was trained on other weights of this target "
            f"({config['target']} and not {target.weights_hash}): exact, but slow",
            stacklevel=2,
        )
    drafter = drafter.to(target.device, target.dtype).eval()
    return drafter.configure(**options)


def _read_config(name: str, path: Path) -> dict:
    try:
        return json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise MmspecError(
            f"drafter {name!r}: {path / 'config.json'} is truncated or no JSON ({error}): restore it or train again"
        ) from None


def _check_shape(name: str, config: dict, target: Target) -> None:
    """Raise MmspecError for a drafter of a target of another size."""
    shape = {
        "hidden_size": target.hidden_size,
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
        with redirect_stdout(None):  # the hub's mixin prints, and standard output may be a pipe for sound
            return cls.from_pretrained(path, strict=True)
    except (SafetensorError, RuntimeError, OSError, TypeError) as error:
        raise MmspecError(
            f"drafter {name!r}: the files in {path} are truncated or foreign ({error}): restore them or train again"
        ) from None
