"""Drafters in the layout that the authors of MSD publish: `config.json` with LLaMA's field names, and one file of
tensors.
"""

import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmspec.errors import MmspecError

# In a released file, but without effect: recomputed, or not in use in the first layer.
IDLE = ("layers.0.input_layernorm.weight", "layers.0.self_attn.rotary_emb.inv_freq")


def read_shape(folder: Path) -> dict:
    """Arguments of `MsdDrafter`. Raises MmspecError for a configuration that is none of this layout."""
    try:
        config = json.loads((folder / "config.json").read_text())
        shape = {
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "heads": config["num_attention_heads"],
            "kv_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
            "own_embedding": config["vocab_size"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MmspecError(
            f"{folder / 'config.json'} is no configuration of a released MSD drafter ({error!r}): restore it"
        ) from None
    return shape | {
        "eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", 10000.0)),
        "layer": "qwen2" if str(config.get("model_type")).startswith("qwen2") else "llama",
        "bias": config.get("bias", True),
    }


def read_weights(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the names and shapes that are `expected`.

    Missing and unexpected tensors are errors; those of no effect are passed over. A pickle is read with weights_only.
    """
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if not (safe.is_file() or pickled.is_file()):
        raise MmspecError(f"{folder} has neither model.safetensors nor pytorch_model.bin: download it again")
    path = safe if safe.is_file() else pickled
    try:
        weights = load_file(safe) if path == safe else torch.load(pickled, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise MmspecError(f"{path} is truncated or foreign ({error!r:.120}): download it again") from None
    missing = sorted(expected.keys() - weights.keys())
    foreign = sorted(weights.keys() - expected.keys() - set(IDLE))
    for problem, names in (("lacks", missing), ("has unexpected", foreign)):
        if names:
            raise MmspecError(f"{folder}: the file {problem} {', '.join(names)}: it is no MSD drafter of this layout")
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise MmspecError(
                f"{folder}: {name} is {list(weights[name].shape)} and should be {list(value.shape)}: "
                "config.json is of another model"
            )
    return {name: weights[name] for name in expected}
