"""Drafters in layouts that others publish: a folder with `config.json` and tensors, told by both, read by the class
that it fills.
"""

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmspec import zoo
from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.drafters.base import TrainedDrafter

# Files of tensors, the first that is there; pickles are read with weights_only.
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "medusa_lm_head.safetensors", "medusa_lm_head.pt")

# Keys of configurations that say nothing of how a drafter computes.
HARMLESS = set(
    "auto_map base_model_name_or_path dtype modal_type num_target_layers pretraining_tp speculators_config "
    "speculators_model_type speculators_version target_model_type torch_dtype use_cache version".split()
)


class Files:
    """The folder of a drafter that others published: its configuration and its tensors, which are read when needed.

    `model` is the folder of the target's model, if it has one. Tensors whose names begin otherwise than with `prefix`
    are not there.
    """

    def __init__(self, folder: Path, model: Path | None = None, prefix: str = ""):
        self.folder, self.model, self.prefix = folder, model, prefix
        try:
            self.config: dict = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise MmspecError(
                f"{folder / 'config.json'} is missing, truncated or no JSON ({error}): restore it"
            ) from None
        if not isinstance(self.config, dict):
            raise MmspecError(f"{folder / 'config.json'} holds no object: restore it")

    def part(self, prefix: str) -> "Files":
        """The same folder, of which only tensors are read whose names begin so."""
        return Files(self.folder, self.model, prefix)

    @property
    def _paths(self) -> list[Path]:
        if path := next((self.folder / name for name in WEIGHTS if (self.folder / name).is_file()), None):
            return [path]
        files = zoo.tensor_files(self.folder).items()
        shards = sorted({path for name, path in files if name.startswith(self.prefix)})
        if not shards:
            raise MmspecError(
                f"{self.folder} has neither model.safetensors nor pytorch_model.bin nor medusa_lm_head.pt: "
                "download it again"
            )
        return shards

    @cached_property
    def names(self) -> set[str]:
        """The names of the tensors."""
        try:
            names = zoo.tensor_files(self.folder).keys()
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(self.folder / WEIGHTS[0], error) from None
        return {name for name in names or self.tensors if name.startswith(self.prefix)}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by name. Raises MmspecError for a file that is damaged, or more than tensors."""
        tensors: dict[str, Tensor] = {}
        for path in self._paths:
            try:
                if path.suffix == ".safetensors":
                    with safe_open(path, "pt") as file:
                        names = file.keys()
                        tensors |= {name: file.get_tensor(name) for name in names if name.startswith(self.prefix)}
                else:
                    pickled = torch.load(path, map_location="cpu", weights_only=True)
                    tensors |= {name: value for name, value in pickled.items() if name.startswith(self.prefix)}
            except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, TypeError) as error:
                raise _damaged(path, error) from None
        return tensors

    def get(self, *keys: str, of: dict | None = None) -> object:
        """The first of these keys that is in the configuration. Raises MmspecError if none is."""
        config = self.config if of is None else of
        for key in keys:
            if config.get(key) is not None:
                return config[key]
        raise MmspecError(f"{self.folder / 'config.json'} lacks {' or '.join(keys)}: restore it")

    def refuse_flags(self, config: dict, known: Iterable[str]) -> None:
        """Raise MmspecError for settings that are on and not `known`, neither here nor by transformers."""
        from transformers import LlamaConfig, Qwen2Config, Qwen3Config

        usual = {key for kind in (LlamaConfig, Qwen2Config, Qwen3Config) for key in kind().to_dict()}
        usual |= {"bos_token_id", "eos_token_id", "pad_token_id", "rope_theta", "rope_scaling", "head_dim"}
        unknown = sorted(
            key
            for key, value in config.items()
            if value not in (None, False)
            and key not in usual | HARMLESS | set(known)
            and not key.startswith("_")
            and not key.endswith(("_token_id", "_token_index"))
        )
        if unknown:
            raise MmspecError(
                f"{self.folder / 'config.json'} sets {', '.join(unknown)}, which mmspec does not know: this drafter "
                "computes in another way than the layouts in docs/adding-a-drafter.md, so it is refused"
            )

    def read(
        self,
        expected: dict[str, Tensor],
        what: str,
        idle: Collection[str] = (),
        rename: Callable[[str], str] = str,
        tensors: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The tensors of the names and shapes that are `expected`, after `rename`; of `tensors`, if they are given.

        Missing, unexpected and mismatched tensors are errors; those without effect, `idle`, are passed over.
        """
        given = self.tensors if tensors is None else tensors
        tensors = {rename(name): value for name, value in given.items()}
        in_file = {rename(name): name for name in given}
        missing = sorted(expected.keys() - tensors.keys())
        foreign = sorted(tensors.keys() - expected.keys() - set(idle))
        for problem, names in (("lacks", missing), ("has unexpected", foreign)):
            if names:
                names = [in_file.get(name, name) for name in names]
                shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
                raise MmspecError(f"{self.folder}: the file {problem} {shown}: it is no {what} drafter of this layout")
        for name, value in expected.items():
            if tensors[name].shape != value.shape:
                raise MmspecError(
                    f"{self.folder}: {in_file[name]} is {list(tensors[name].shape)} and should be {list(value.shape)}: "
                    "config.json is of another model"
                )
        return {name: tensors[name] for name in expected}


def _damaged(path: Path, error: Exception) -> MmspecError:
    return MmspecError(f"{path} is truncated or foreign ({error!r:.120}): download it again")


@dataclass(frozen=True, slots=True)
class Layout:
    """A published layout: its name, where the class is that reads it, and what tells it.

    `settings` is given the configuration, `tensors` the names of the tensors. A layout without a class is refused.
    Tensors of a drafter that comes `within` a model's own files begin so.
    """

    name: str
    path: str
    settings: Callable[[dict], bool]
    tensors: Callable[[set[str]], bool] = lambda names: True
    within: str = ""

    def load(self) -> "type[TrainedDrafter]":
        """The class. Raises MmspecError for a layout that is known and not read."""
        if not self.path:
            raise MmspecError(f"drafters of the kind {self.name} are not read: use one of {', '.join(read_layouts())}")
        module, _, kind = self.path.partition(":")
        return getattr(import_module(f"mmspec.drafters.{module}"), kind)


def _speculators(kind: str) -> Callable[[dict], bool]:
    return lambda config: config.get("speculators_model_type") == kind


def _architecture(part: str) -> Callable[[dict], bool]:
    return lambda config: any(part in str(name) for name in config.get("architectures") or [])


def _model_type(kind: str) -> Callable[[dict], bool]:
    return lambda config: config.get("model_type") == kind


def _dflash(config: dict) -> bool:
    return "dflash_config" in config or _architecture("DFlash")(config)


def _lantern(config: dict) -> bool:
    return "input_type" in config or config.get("model_type") == "chameleon"


def _transformer(config: dict) -> bool:
    return "num_attention_heads" in config or "text_config" in config


# The first that fits is taken. Sources of the layouts are named where they are read.
LAYOUTS = (
    Layout("EAGLE-3", "eagle3:Eagle3Drafter", _speculators("eagle3")),
    Layout("P-EAGLE", "peagle:PEagleDrafter", _speculators("peagle")),
    Layout("DSpark", "dspark:DSparkDrafter", _speculators("dspark")),
    Layout("DFlash", "dflash:DFlashDrafter", _speculators("dflash")),
    Layout("speculators, other than EAGLE-3, P-EAGLE, DFlash, DSpark", "", lambda c: "speculators_model_type" in c),
    Layout("MTP", "mtp:MtpDrafter", _transformer, lambda names: any(name.startswith("mtp.") for name in names), "mtp."),
    Layout("Medusa", "medusa:PublicMedusaDrafter", lambda config: "medusa_num_heads" in config),
    Layout("Gemma-4 assistant", "gemma4_assistant:Gemma4AssistantDrafter", _model_type("gemma4_assistant")),
    Layout("assistant of the unified Gemma 4", "", _model_type("gemma4_unified_assistant")),
    Layout("DFlash2", "", _architecture("DFlash2")),
    Layout("DFlare", "", _dflash, lambda names: any("k_proj_target" in name for name in names)),
    Layout("Domino", "", _dflash, lambda names: any("prefix_gru" in name for name in names)),
    Layout("DSpark", "dspark:DSparkDrafter", _dflash, lambda names: any("markov_head." in name for name in names)),
    Layout("DSpark", "dspark:DSparkDrafter", lambda config: "markov_rank" in config),
    Layout("DFlash", "dflash:DFlashDrafter", _dflash),
    Layout("P-EAGLE", "peagle:PEagleDrafter", _transformer, lambda names: "mask_hidden" in names),
    Layout("EAGLE-3", "eagle3:Eagle3Drafter", _architecture("agle3")),
    Layout("EAGLE-3", "eagle3:Eagle3Drafter", _transformer, lambda names: any("hidden_norm" in name for name in names)),
    Layout("ViSpec", "vispec:ViSpecDrafter", _transformer, lambda names: any("imadpt." in name for name in names)),
    Layout(
        "MSD",
        "msd:MsdDrafter",
        lambda config: _transformer(config) and config.get("model_type") in ("llava", "qwen2_vl", "qwen2_5_vl"),
        lambda names: any(name.startswith("fc.") for name in names),
    ),
    Layout("LANTERN", "lantern:LanternDrafter", _lantern, lambda names: any(name.startswith("fc.") for name in names)),
    Layout("EAGLE", "eagle:EagleDrafter", _transformer, lambda names: any(name.startswith("fc.") for name in names)),
    Layout("a model", "model:ModelDrafter", _transformer),
)


def read_layouts() -> list[str]:
    """The names of the layouts that are read."""
    return list(dict.fromkeys(layout.name for layout in LAYOUTS if layout.path))


def find(folder: Path, model: Path | None = None) -> tuple[Layout, Files] | None:
    """The layout of a drafter's folder, and its files; None for one that mmspec made, or that nobody knows."""
    files = Files(folder, model)
    for layout in LAYOUTS:
        if layout.settings(files.config) and layout.tensors(files.names):
            return layout, files
    return None
