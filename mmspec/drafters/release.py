"""What a drafter is in a public layout: a configuration and tensors, as the readers beside the classes expect them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Verifier:
    """What public configurations say of the target: its hub id or path, the classes that its configuration names, how
    many ids it has vectors for, and how many positions.
    """

    name: str
    architectures: list[str]
    vocabulary: int
    positions: int


@dataclass(frozen=True, slots=True)
class Release:
    """A drafter in a public layout: `config.json`, the tensors of `file`, and in phrases what the layout has no place
    for (`lost`).
    """

    config: dict
    tensors: dict[str, Tensor]
    lost: list[str]
    file: str = "model.safetensors"


def layer_settings(shape: dict, layers: int, vocabulary: int, positions: int) -> dict:
    """The configuration of decoder layers of a `shape` (`shapes.layer_config`), which `shapes.layer_shape` reads."""
    rope = {key: value for key, value in shape["rope"].items() if key != "rope_theta"}
    return {
        "model_type": shape["kind"],
        "hidden_size": shape["hidden_size"],
        "intermediate_size": shape["intermediate_size"],
        "num_hidden_layers": layers,
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "hidden_act": "silu",
        "rms_norm_eps": shape["eps"],
        "attention_bias": bool(shape.get("bias")) or shape["kind"] == "qwen2",
        "mlp_bias": False,
        # In the spellings of transformers 4 and 5.
        "rope_theta": shape["rope"]["rope_theta"],
        "rope_scaling": None if rope == {"rope_type": "default"} else rope,
        "rope_parameters": shape["rope"],
        "max_position_embeddings": positions,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }
