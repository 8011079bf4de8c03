"""Codecs by kind: a table of lazy paths, other packages' entry points, and loading from a model folder."""

import json
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from mmspec.codecs.base import Codec, SavedCodec
from mmspec.errors import MmspecError, unknown

KINDS = {
    "mel": "mmspec.codecs.mel:MelCodec",
    "hub": "mmspec.codecs.hub:HubCodec",
    "snac": "mmspec.codecs.snac:SnacCodec",
}


def kinds() -> dict[str, str]:
    """Paths of codec classes by kind: those of mmspec, and those registered under `mmspec.codecs`."""
    return KINDS | {entry.name: entry.value for entry in entry_points(group="mmspec.codecs") if entry.name not in KINDS}


def load(folder: Path, entry: object, source: Path) -> Codec:
    """The codec in a folder, in float32.

    `entry` is what the index `source` says of it: its kind and options. An index of before kinds were named has the
    options of a `HubCodec`, or nothing for a `MelCodec`.
    """
    options = dict(entry) if isinstance(entry, dict) else {}
    kind = options.pop("kind", None) or ("hub" if options or _is_of_transformers(folder) else "mel")
    if kind not in kinds():
        raise unknown("codec kind", kind, kinds())
    module, _, name = kinds()[kind].partition(":")
    try:
        cls: type[SavedCodec] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise MmspecError(
            f"codec {kind!r} needs {error.name}: mmspec's own codecs come with pip install 'mmspec[speech]'"
        ) from None
    if kind == "hub" and not {"codebooks", "context"} <= options.keys():
        raise MmspecError(f"{source}: codec is {entry!r}, not its codebooks and context: restore the file")
    try:
        return cls.from_pretrained(folder, **options)
    except TypeError:
        raise MmspecError(f"{source}: codec is {entry!r}, which are no options of a {name}: restore the file") from None


def _is_of_transformers(folder: Path) -> bool:
    """Whether the folder's configuration names a model type of transformers."""
    path = folder / "config.json"
    try:
        return bool(json.loads(path.read_text()).get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise MmspecError(f"{path} cannot be read ({error}): restore it from the model's source") from None


def describe(codec: Codec) -> dict[str, object]:
    """What a model's index says of a codec. Raises MmspecError for a kind that could not be loaded again."""
    if not isinstance(codec, SavedCodec) or codec.kind not in kinds():
        raise MmspecError(
            f"a {type(codec).__name__} cannot be saved: save the parts yourself, and give codec= to from_pretrained"
        )
    return {"kind": codec.kind, **codec.options}


def save(codec: Codec, folder: Path) -> None:
    """Write a codec that `describe` can describe."""
    describe(codec)
    assert isinstance(codec, SavedCodec)
    codec.save_pretrained(folder)
