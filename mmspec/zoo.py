"""The zoo: a model by bundled name, local path or hub id, and loading that says which file is wrong."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError, safe_open

from mmspec.errors import MmspecError, unknown

INDEX, PROMPTS = "model_index.json", "prompts.jsonl"
VOCABULARY, RESULTS = "vocabulary.json", "results.json"
# Weights that are pickled, of which torch reads tensors alone (`weights_only`).
PICKLES = ["pytorch_model*.bin", "llm.pt", "medusa_lm_head.pt"]
# How the names of buffers end that older versions of transformers saved, and newer ones compute.
OLD_BUFFERS = ("inv_freq", "position_ids", "masked_bias", "attn.bias", "attention.bias", "cos_cached", "sin_cached")
# What loading raises for files that are damaged, foreign, or more than tensors.
DAMAGED = (
    *(OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, ImportError),
    *(UnpicklingError, SafetensorError),
)
# How the files of LlamaGen's models begin, which are released without a folder's other files.
LLAMAGEN = ("c2i_", "t2i_")
# Files that tell a folder which mmspec did not make: of transformers, CosyVoice and LlamaGen.
FOREIGN = ("config.json", "llm.pt", *(f"{beginning}*" for beginning in LLAMAGEN))
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True, slots=True)
class Entry:
    """A bundled model: its name and folder."""

    name: str
    folder: Path

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def drafters(self) -> list[str]:
        """The trained ones."""
        return drafters(self.folder)


def home() -> Path:
    """The folder of the bundled models: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parent
    return package / "_models" if (package / "_models").is_dir() else package.parent / "models"


def bundled() -> dict[str, Entry]:
    """The bundled models by name."""
    folders = sorted(path.parent for path in home().glob(f"*/{INDEX}"))
    return {folder.name: Entry(folder.name, folder) for folder in folders}


def drafters(folder: Path) -> list[str]:
    """Names of the drafters that were trained for a model."""
    return sorted(path.parent.name for path in folder.glob("drafters/*/config.json"))


def resolve(
    name: str | Path, allow_transformers: bool = False, check: Callable[[Path], None] | None = None, **hub: Any
) -> Path:
    """The folder of a model: a bundled name, then a local path, then a hub id `owner/name` (`check` and `hub` go to
    `download`).

    With `allow_transformers` it may be a folder that mmspec did not make too, which has one of `FOREIGN` and no index
    of parts.
    """
    try:
        names, path = bundled(), Path(name).expanduser()
    except RuntimeError as error:
        raise MmspecError(f"no folder {name}: {error}") from None
    if isinstance(name, str) and name in names:
        return names[name].folder
    if path.is_dir():
        foreign = allow_transformers and any(next(path.glob(name), None) for name in FOREIGN)
        if not (path / INDEX).is_file() and not foreign:
            raise MmspecError(
                f"{path} is not a model folder: it has no {INDEX}; give a folder made by save_pretrained or mmspec "
                "train"
            )
        return path
    if path.exists():
        raise MmspecError(f"{path} is a file: give the model's folder")
    if not HUB_ID.fullmatch(str(name)) or path.parent.is_dir():
        if "/" in str(name):
            raise MmspecError(
                f"no folder {path}: give a model folder, a hub id such as owner/name, or one of "
                f"{', '.join(names) or 'none bundled'}"
            )
        raise unknown("model", str(name), names)
    return download(str(name), check=check, **hub)


def released(folder: Path, beginnings: tuple[str, ...] = LLAMAGEN) -> list[Path]:
    """Files of LlamaGen's in a folder, by how their names begin: pickles, or safetensors."""
    files = (file for file in folder.iterdir() if file.suffix in (".pt", ".safetensors"))
    return sorted(file for file in files if file.name.startswith(beginnings))


def download(name: str, *more: str, check: Callable[[Path], None] | None = None, **hub: Any) -> Path:
    """A snapshot of a hub repository: weights as safetensors, or pickled (`PICKLES`, and what `more` names) where there
    are no others.

    `check` is given the folder before its weights are fetched, and raises MmspecError for a model that is refused.
    """
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, **hub))
        except Exception as error:  # the hub client's errors follow its HTTP library, which differs between versions
            raise MmspecError(
                f"could not fetch model {name!r} from the hub ({_first_line(error)}): check the name and the network, "
                "or give a local folder"
            ) from None

    folder = fetch(["*.json", "*.jsonl", "*.md", "*.yaml", "*.jinja", "*.txt", "*.model", "*.py", "samples/*.png"])
    if check:
        check(folder)
    fetch(["*.safetensors"])
    return folder if next(folder.rglob("*.safetensors"), None) else fetch([*PICKLES, *more])


def download_codec(name: str) -> Path:
    """A codec by hub id."""
    if not HUB_ID.fullmatch(name):
        raise MmspecError(f"no folder {name}: give a codec's folder, or a hub id such as owner/name")
    return download(name, "pytorch_model.bin")


def prompts(folder: Path, *fields: str) -> list[dict]:
    """The lines of a model's own list of prompts, `prompts.jsonl`; each has a prompt and the `fields`."""
    required = ("prompt", *fields)
    try:
        lines = [
            {**row, **{name: row[name] for name in required}}
            for row in map(json.loads, (folder / PROMPTS).read_text().splitlines())
        ]
    except (OSError, ValueError, KeyError, TypeError):
        lines = []
    if not lines:
        line = ", ".join(f'"{name}": ...' for name in required)
        raise MmspecError(f"{folder / PROMPTS} must hold a line {{{line}}} for each prompt: restore it")
    return lines


def read_object(path: Path) -> dict:
    """A JSON file of a model folder as data. Raises MmspecError for one that is damaged or holds no object."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it must hold an object")
        return content
    except (OSError, ValueError) as error:
        raise MmspecError(f"{path} cannot be read ({error}): restore it from the model's source") from None


def read_index(folder: Path) -> dict:
    """`model_index.json` as data."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MmspecError(f"{path} cannot be read ({error}): restore it from the model's source") from None
    if not isinstance(index, dict):
        raise MmspecError(
            f"{path} must hold a JSON object, not a {type(index).__name__}: restore it from the model's source"
        )
    return index


def check_kind(folder: Path, kind: str, article: str) -> dict:
    """The index of a model whose pipeline is `kind`. Raises MmspecError, which asks for `article` model, for others."""
    index = read_index(folder)
    if index.get("_class_name") != kind:
        raise MmspecError(f"{folder} holds a {index.get('_class_name')}, not a {kind}: give {article} model")
    return index


def check_weights(path: Path) -> None:
    """Refuse a missing, truncated or foreign safetensors file by name."""
    if not path.is_file():
        raise MmspecError(
            f"{path} is missing: restore it from the model's source, or train the model again with mmspec train"
        )
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise MmspecError(
            f"{path} is truncated or is no safetensors file ({path.stat().st_size} bytes; {error}): "
            "restore it from the model's source (`git lfs pull` if it is a pointer)"
        ) from None


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a model or drafter as transformers lays it out: in model.safetensors, or in several
    files, by their index or by what they hold. Pickles without an index are not looked into.

    Raises OSError, ValueError or SafetensorError for damaged files.
    """
    paths = [path for path in [folder / "model.safetensors"] if path.is_file()]
    if not paths:
        for index in [*folder.glob("*.safetensors.index.json"), *folder.glob("pytorch_model.bin.index.json")]:
            return {name: folder / file for name, file in json.loads(index.read_text()).get("weight_map", {}).items()}
        paths = sorted(folder.glob("model-*-of-*.safetensors"))
    files: dict[str, Path] = {}
    for path in paths:
        with safe_open(path, framework="numpy") as file:
            files |= dict.fromkeys(file.keys(), path)
    return files


def load_component(folder: Path, name: str, kind: type, *, foreign: bool = False, **options: Any) -> Any:
    """`kind.from_pretrained` of one subfolder, refusing weights that are damaged or belong to another model.

    A `foreign` model may have its weights in `.bin` files, and tensors that its class does not have.
    """
    path = folder / name
    if not path.is_dir():
        raise MmspecError(f"{path} is missing, and {folder / INDEX} names it: restore it from the model's source")
    files = sorted(path.glob("*.safetensors"))
    pickles = [] if files or not foreign else sorted(path.glob(PICKLES[0]))
    for file in files or ([] if pickles else [path / "model.safetensors"]):
        check_weights(file)
    try:
        loading = {"output_loading_info": True, "use_safetensors": not pickles, **options}
        model, report = kind.from_pretrained(path, **loading)  # type: ignore[attr-defined]
    except DAMAGED as error:
        raise MmspecError(
            f"{path} does not load as {kind.__name__} ({_first_line(error)}): restore it from the model's source"
        ) from None
    check_report(report, (files or pickles)[0], path / "config.json", kind.__name__, foreign)
    return model


def check_report(report: dict, file: Path, config: Path, kind: str, foreign: bool = False) -> None:
    """Refuse what transformers loaded with weights missing, left over or of other shapes.

    Of what is left over in the file of a `foreign` model is only warned, and not at all of buffers that older versions
    of transformers saved.
    """
    wrong = {
        key: sorted(map(str, report.get(key) or [])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    for key, names in wrong.items():
        if foreign and key == "unexpected_keys":
            names = [name for name in names if not name.endswith(OLD_BUFFERS)]
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            if foreign and key == "unexpected_keys":
                warnings.warn(f"{file}: a {kind} has no {shown}; the model is used without", stacklevel=2)
                continue
            raise MmspecError(
                f"{file} holds the weights of another model ({key.split('_')[0]}: {shown}): {config} describes a "
                f"{kind}; restore the file"
            )


def weights_hash(folder: Path, span: int = 1 << 20) -> str:
    """A short name for a set of weights, from the size and both ends of each file."""
    digest = hashlib.sha256()
    pickles = {*released(folder), *(path for name in PICKLES for path in folder.glob(name))}
    for file in sorted(folder.glob("*.safetensors")) or sorted(pickles):
        length = file.stat().st_size
        digest.update(length.to_bytes(8, "little"))
        with file.open("rb") as stream:
            digest.update(stream.read(span))
            stream.seek(max(0, length - span))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
