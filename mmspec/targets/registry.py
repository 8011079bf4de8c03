"""Targets by the family of a model: `config.model_type`, a table of lazy paths, and other packages' entry points."""

from importlib import import_module
from importlib.metadata import entry_points

from transformers import PreTrainedModel

from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget

# Families whose models are not causal language models; all others are tried as `CausalTarget`.
FAMILIES = {
    "llava": "mmspec.targets.vision_language:VisionLanguageTarget",
    "llava_next": "mmspec.targets.vision_language:VisionLanguageTarget",
    "qwen2_vl": "mmspec.targets.vision_language:VisionLanguageTarget",
    "qwen2_5_vl": "mmspec.targets.vision_language:VisionLanguageTarget",
}


def families() -> dict[str, str]:
    """Paths of target classes by model type: those of mmspec, and those registered under `mmspec.targets`."""
    return FAMILIES | {
        entry.name: entry.value for entry in entry_points(group="mmspec.targets") if entry.name not in FAMILIES
    }


def target_of(model: PreTrainedModel, weights_hash: str = "", check: bool = True) -> CausalTarget:
    """The model as its family's target. Raises MmspecError for a model that is not understood."""
    path = families().get(model.config.model_type, "mmspec.targets.causal:CausalTarget")
    module, _, name = path.partition(":")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise MmspecError(f"the target of {model.config.model_type} models, {path}, does not load: {error}") from None
    return kind(model, weights_hash=weights_hash, check=check)
