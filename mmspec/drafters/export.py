"""Drafters in formats that other engines read: which there are, and how their folders are written."""

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mmspec import zoo
from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.card import release_card
from mmspec.drafters.layouts import Files
from mmspec.drafters.registry import Stored
from mmspec.drafters.release import Release, Verifier
from mmspec.drafters.table import RELEASED, TABLE
from mmspec.errors import MmspecError, unknown
from mmspec.targets.base import Target

# Who reads a format, beside mmspec.
FORMATS = {
    "speculators": "vLLM and speculators",
    "eagle": "EAGLE's own code, SGLang and vLLM",
    "medusa": "Medusa's own code, TGI and vLLM",
}


def check_format(stored: Stored, name: str | None) -> str:
    """The format that a drafter is written in. Raises MmspecError for one that its kind does not have."""
    if name is not None and name not in FORMATS:
        raise unknown("format", name, FORMATS)
    if not issubclass(stored.cls, TrainedDrafter):
        raise MmspecError(f"drafter {stored.name!r} has no weights: there is nothing to export")
    cls = stored.cls
    kind, own = cls.kind or cls.name, cls.format
    if not own:
        loaded = {key: entry.load() for key, entry in (TABLE | RELEASED).items()}
        others = [key for key, other in loaded.items() if issubclass(other, TrainedDrafter) and other.format]
        raise MmspecError(
            f"a drafter of the kind {kind} has no format that other engines read: give its folder away as it is "
            f"(docs/giving-a-drafter-away.md), which mmspec loads by --drafter FOLDER; what can be exported are "
            f"{', '.join(others)}"
        )
    if name not in (None, own):
        raise MmspecError(
            f"a drafter of the kind {kind} is written in the format {own}, and not {name}: give --format {own}"
        )
    return own


def check_folder(out: Path) -> None:
    """Raise MmspecError for a folder that cannot be made, or that has something in it."""
    parent = out.absolute().parent
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise MmspecError(f"{out} is there already: give a folder that is not")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise MmspecError(f"cannot make {out}: {parent} is no folder that can be written to; make it first")


def verifier_of(target: Target, name: str) -> Verifier:
    """What public configurations say of a target that is called `name`."""
    model = target.model
    return Verifier(
        name,
        list(model.config.architectures or [type(model).__name__]),
        len(model.get_input_embeddings().weight),
        target.max_positions,
    )


def export(stored: Stored, target: Target, verifier: Verifier, out: Path) -> Release:
    """Write a drafter to the folder `out` in the format of its kind, in the dtype in which it is stored.

    The folder appears when it is whole. Raises MmspecError for a drafter that does not fit the target.
    """
    drafter = stored.read(target)
    release = drafter.to_released(target, verifier)
    assert stored.folder is not None
    source = (stored.files or Files(stored.folder)).tensors.values()
    dtype = next(tensor.dtype for tensor in source if tensor.is_floating_point())

    def as_stored(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        return (tensor.to(dtype) if tensor.is_floating_point() else tensor).clone().contiguous()

    tensors = {name: as_stored(tensor) for name, tensor in release.tensors.items()}
    config = release.config | {"torch_dtype": str(dtype).removeprefix("torch.")}
    hub_id = verifier.name if zoo.HUB_ID.fullmatch(verifier.name) and not Path(verifier.name).exists() else None
    card = release_card(drafter.name, drafter.format, FORMATS[drafter.format], verifier.name, release.lost, hub_id)
    partial = out.absolute().with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.mkdir()
        save_file(tensors, partial / release.file, {"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        card.save(partial / "README.md")
        os.rename(partial, out)
    except OSError as error:
        raise MmspecError(f"cannot write {out}: {error.strerror or error}; choose another place") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return release
