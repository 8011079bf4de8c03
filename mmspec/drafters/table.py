"""The names of drafters: those of mmspec, those of other packages, and those that a model has weights for.

This module imports no torch, so that a wrong name is refused at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from mmspec import zoo
from mmspec.errors import MmspecError, unknown

if TYPE_CHECKING:
    from mmspec.drafters.base import Drafter


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a drafter's class is (`module:Class`), and whether it is trained for a target.

    A drafter that comes `within` a model has its tensors among the model's own, whose names tell. A `composed` one is
    made of another, whose name follows its own after a colon. One that not every target can have is not tried unless it
    is `asked` for.
    """

    path: str
    trained: bool = False
    within: Callable[[set[str]], bool] | None = None
    composed: bool = False
    asked: bool = False

    def usable(self, folder: Path | None) -> bool:
        """Whether it can be had without files of its own."""
        own = not self.trained and not self.composed
        return own and (self.within is None or self.within(tensor_names(folder)))

    def load(self) -> "type[Drafter]":
        """The class. Raises MmspecError if there is none."""
        from mmspec.drafters.base import Drafter

        module, _, name = self.path.partition(":")
        try:
            kind = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MmspecError(f"the drafter {self.path} does not load: {error}") from None
        if not (isinstance(kind, type) and issubclass(kind, Drafter)):
            raise MmspecError(f"{self.path} is no drafter: make it a subclass of mmspec.drafters.base.Drafter")
        return kind


def tensor_names(folder: Path | None) -> set[str]:
    """The names of the tensors in a model's folder, none if it is damaged or has none."""
    try:
        return set(zoo.tensor_files(folder)) if folder else set()
    except (OSError, ValueError, AttributeError, SafetensorError):
        return set()


def has_mtp(names: set[str]) -> bool:
    """Whether there is an MTP of Qwen's that is not quantised."""
    own = [name for name in names if name.startswith("mtp.")]
    return "mtp.fc.weight" in own and all(name.endswith((".weight", ".gate_up_proj", ".down_proj")) for name in own)


TABLE = {
    "none": Entry("mmspec.drafters.none:NoDrafter"),
    "lookup": Entry("mmspec.drafters.lookup:LookupDrafter"),
    "jacobi": Entry("mmspec.drafters.jacobi:JacobiDrafter"),
    "recycling": Entry("mmspec.drafters.recycling:RecyclingDrafter"),
    "aded": Entry("mmspec.drafters.aded:AdedDrafter"),
    "hierarchy": Entry("mmspec.drafters.hierarchy:HierarchyDrafter"),
    "stand": Entry("mmspec.drafters.stand:StandDrafter"),
    "del": Entry("mmspec.drafters.early_exit:EarlyExitDrafter", asked=True),
    "medusa": Entry("mmspec.drafters.medusa:MedusaDrafter", trained=True),
    "vadusa": Entry("mmspec.drafters.vadusa:VadusaDrafter", trained=True),
    "hawk": Entry("mmspec.drafters.hawk:HawkDrafter", trained=True),
    "hawk-path": Entry("mmspec.drafters.hawk_path:HawkPathDrafter", trained=True),
    "amphista": Entry("mmspec.drafters.amphista:AmphistaDrafter", trained=True),
    "falcon": Entry("mmspec.drafters.falcon:FalconDrafter", trained=True),
    "hydra": Entry("mmspec.drafters.hydra:HydraDrafter", trained=True),
    "redrafter": Entry("mmspec.drafters.redrafter:ReDrafter", trained=True),
    "msd": Entry("mmspec.drafters.msd:MsdDrafter", trained=True),
    "dflash": Entry("mmspec.drafters.dflash:DFlashDrafter", trained=True),
    "dspark": Entry("mmspec.drafters.dspark:DSparkDrafter", trained=True),
    "cascade": Entry("mmspec.drafters.cascade:CascadeDrafter", composed=True),
    "rasd": Entry("mmspec.drafters.cascade:RasdDrafter", composed=True),
    "mtp": Entry("mmspec.drafters.mtp:MtpDrafter", within=has_mtp),
}

# The kinds of folders that hold what was read from a public layout and saved anew: no name stands for these.
RELEASED = {
    "eagle": Entry("mmspec.drafters.eagle:EagleDrafter"),
    "eagle3": Entry("mmspec.drafters.eagle3:Eagle3Drafter"),
    "lantern": Entry("mmspec.drafters.lantern:LanternDrafter"),
    "peagle": Entry("mmspec.drafters.peagle:PEagleDrafter"),
    "public-medusa": Entry("mmspec.drafters.medusa:PublicMedusaDrafter"),
    "vispec": Entry("mmspec.drafters.vispec:ViSpecDrafter"),
}


def names() -> dict[str, Entry]:
    """Built-in drafters and those that other packages register under `mmspec.drafters`."""
    others = entry_points(group="mmspec.drafters")
    return TABLE | {entry.name: Entry(entry.value) for entry in others if entry.name not in TABLE}


def parts_of(name: str) -> tuple[str, str] | None:
    """The names of a composed drafter and of the one that it is made of; None for any other drafter."""
    outer, _, inner = name.partition(":")
    return (outer, inner) if outer in TABLE and TABLE[outer].composed else None


def folder_of(name: str, folder: Path | None) -> Path | None:
    """Where a drafter's files are: in the model's folder, at a path, or of a hub id, which is fetched; None without
    any.
    """
    if folder and (folder / "drafters" / name / "config.json").is_file():
        return folder / "drafters" / name
    if name in names():
        return folder if names()[name].within else None
    if (path := Path(name).expanduser()).is_dir():
        return path
    return zoo.download(name) if zoo.HUB_ID.fullmatch(name) else None


def usable(folder: Path | None) -> list[str]:
    """Names that load for a model: drafters that need no weights, and those that its folder has weights for."""
    trained = zoo.drafters(folder) if folder else []
    own = [name for name, entry in names().items() if entry.usable(folder) and not entry.asked]
    return [name for name in own if name not in trained] + trained


def check_name(name: str, folder: Path | None) -> None:
    """Raise MmspecError for a drafter that is not known, or that the model in `folder` has no weights for.

    It may be in a folder of its own, or have a hub id, which is not asked for yet.
    """
    if parts := parts_of(name):
        if not parts[1]:
            raise MmspecError(f"drafter {name!r} is made of another one: name it too, such as {parts[0]}:jacobi")
        return check_name(parts[1], folder)
    path = folder / "drafters" if folder else None
    in_folder = {entry.name for entry in path.iterdir()} if path and path.is_dir() else set()
    elsewhere = Path(name).expanduser()
    if name not in {*names(), *in_folder} and ("/" in name or elsewhere.is_dir()):
        if elsewhere.is_dir() and not (elsewhere / "config.json").is_file():
            raise MmspecError(
                f"{elsewhere} holds no drafter: no config.json; give a drafter's folder, or that of a small model of "
                "transformers"
            )
        if elsewhere.is_dir() or zoo.HUB_ID.fullmatch(name):
            return
        raise MmspecError(f"no folder {elsewhere}: give a drafter's name, its folder, or a hub id such as owner/name")
    if name not in names() and name not in in_folder:
        raise unknown("drafter", name, {*usable(folder), *in_folder})
    if name in TABLE and not TABLE[name].usable(folder) and not (path and (path / name / "config.json").exists()):
        raise without_weights(name, folder)


def without_weights(name: str, folder: Path | None) -> MmspecError:
    """The error for a trained drafter that the model has no weights for."""
    if name in TABLE and TABLE[name].within:
        return MmspecError(
            f"drafter {name!r} comes within models, and the files of this one hold none that mmspec reads: use one of "
            f"{', '.join(sorted(usable(folder)))}"
        )
    model = folder.name if folder else "MODEL"
    return MmspecError(
        f"drafter {name!r} has no weights for this model: use one of {', '.join(sorted(usable(folder)))}, or train it "
        f"with `mmspec train {name} --model {model} --prompts FILE --out FOLDER` (docs/train-a-drafter.md)"
    )
