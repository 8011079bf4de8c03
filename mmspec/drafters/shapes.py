"""Decoder layers of published drafters: their configuration as transformers takes it, and rotary positions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import ChameleonConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config
from transformers.models.chameleon.modeling_chameleon import ChameleonDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from mmspec.errors import MmspecError
from mmspec.targets.base import Target
from mmspec.targets.hidden import layers_of

# Configuration and layer by what attention has: nothing more, biases of q, k and v, norms of q and k, or those of
# Chameleon, which differ by head.
KINDS = {
    "llama": (LlamaConfig, LlamaDecoderLayer),
    "qwen2": (Qwen2Config, Qwen2DecoderLayer),
    "qwen3": (Qwen3Config, Qwen3DecoderLayer),
    "chameleon": (ChameleonConfig, ChameleonDecoderLayer),
}

ROPE_TYPES = {"default", "linear", "llama3", "yarn"}


def layer_shape(config: dict, names: set[str], folder: Path) -> dict:
    """Arguments of `layer_config` from a published configuration and the names of its tensors.

    Raises MmspecError for what is missing or not understood.
    """
    try:
        heads = config["num_attention_heads"]
        shape = {
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        }
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise MmspecError(
            f"{folder / 'config.json'} describes no decoder layer ({error!r}): restore it from its source"
        ) from None
    if (act := config.get("hidden_activation") or config.get("hidden_act") or "silu") != "silu":
        raise MmspecError(f"{folder}: layers with {act!r} are not understood: those of Llama and Qwen, with silu, are")

    def has(part: str) -> bool:
        return any(name.endswith(part) for name in names)

    bias = has("q_proj.bias")
    kind = "qwen3" if has("q_norm.weight") else "qwen2" if bias and not has("o_proj.bias") else "llama"
    if kind == "qwen3" and bias and not has("o_proj.bias"):
        raise MmspecError(f"{folder}: attention has norms, and biases of q, k and v alone, which is not understood")
    return shape | {
        "eps": config.get("rms_norm_eps", 1e-6),
        "rope": read_rope(config, folder),
        "kind": kind,
        "bias": bias and kind != "qwen2",
    }


def read_rope(config: dict, folder: Path) -> dict:
    """How positions rotate, as `rope_parameters` of transformers; M-RoPE keeps its sections."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = rope.pop("type", None) or rope.get("rope_type") or "default"
    rope["rope_type"] = "default" if kind == "mrope" else kind
    rope.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    if rope["rope_type"] not in ROPE_TYPES or (kind == "mrope" and "mrope_section" not in rope):
        raise MmspecError(
            f"{folder}: rope of the type {kind!r} is not understood: {', '.join(sorted(ROPE_TYPES))} and mrope are"
        )
    return rope


def layer_config(
    hidden_size: int,
    intermediate_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    eps: float,
    rope: dict,
    kind: str,
    bias: bool = False,
    layers: int = 1,
    positions: int = 32768,
) -> PreTrainedConfig:
    """A configuration of `layers` full-attention layers of a kind."""
    sections = ("mrope_section", "mrope_interleaved")
    options: dict = {} if kind == "qwen2" else {"attention_bias": bias}
    return KINDS[kind][0](
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=eps,
        rope_parameters={key: value for key, value in rope.items() if key not in sections},
        max_position_embeddings=positions,
        attn_implementation="sdpa",
        **options,
    )


def shape_like(target: Target) -> dict:
    """Sizes of a decoder layer of about the shape of the target's: arguments of `layer_config`."""
    text, width = target.model.config.get_text_config(), target.hidden_size
    most = getattr(text, "num_attention_heads", 1)
    heads = next(heads for heads in range(most, 0, -1) if width % (2 * heads) == 0)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    inner = getattr(text, "intermediate_size", None)
    return {
        "hidden_size": width,
        "intermediate_size": inner if isinstance(inner, int) else 3 * width,  # a list in Gemma 3n
        "heads": heads,
        "kv_heads": kv_heads if heads % kv_heads == 0 else heads,
        "eps": getattr(text, "rms_norm_eps", 1e-5),
    }


def same_shape(target: Target, count: int) -> tuple[dict, list[dict[str, Tensor]]]:
    """Arguments of `layer_config` that give the target's decoder layers, and the weights of the last `count` of these;
    no weights, and a layer of Qwen3 of about that size, where the target's layers are of no known kind.
    """
    text, decoder = target.model.config.get_text_config(), getattr(target, "decoder", None)
    size = shape_like(target)
    other = size | {
        "head_dim": target.hidden_size // size["heads"],
        "rope": {"rope_type": "default", "rope_theta": 10000.0},
        "kind": "qwen3",
    }
    try:
        last = list(layers_of(decoder, text.num_hidden_layers))[-count:]
        weights = [layer.state_dict() for layer in last]
        shape = layer_shape(text.to_dict(), set(weights[-1]), Path(type(target.model).__name__))
        for number, own in enumerate(weights):
            plain = plain_layer(layer_config(**shape), shape["kind"], number).state_dict()
            if {name: value.shape for name, value in own.items()} != {name: one.shape for name, one in plain.items()}:
                return other, []
    except (AttributeError, MmspecError):
        return other, []
    return shape, weights


def plain_layer(config: PreTrainedConfig, kind: str, number: int) -> nn.Module:
    """A decoder layer of transformers."""
    return KINDS[kind][1](config, number)


class Rotary(nn.Module):
    """Cosines and sines of positions, which have three axes with `mrope_section` (time, height, width).

    Each frequency then follows one axis: blocks of them (Qwen2-VL), or in turn with `mrope_interleaved` (Qwen3-VL).
    """

    axis_of: Tensor | None

    def __init__(self, config: PreTrainedConfig, rope: dict):
        super().__init__()
        # No part of this module: frequencies stay float32 when the drafter becomes bfloat16.
        self._rotary = (LlamaRotaryEmbedding(config),)
        half = len(self._rotary[0].inv_freq)
        axis_of: Tensor | None = None
        if sections := rope.get("mrope_section"):
            if sum(sections) != half or len(sections) != 3:
                raise MmspecError(
                    f"mrope_section {sections} does not fit a head of {2 * half} numbers: restore config.json"
                )
            axis_of = torch.arange(3).repeat_interleave(torch.tensor(sections))
            if rope.get("mrope_interleaved"):
                axis_of = torch.zeros(half, dtype=torch.long)
                for axis in (1, 2):
                    axis_of[axis : 3 * sections[axis] : 3] = axis
            axis_of = axis_of.repeat(2)
        self.register_buffer("axis_of", axis_of, persistent=False)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of positions."""
        return () if self.axis_of is None else (3,)

    def forward(
        self, like: Tensor, position_ids: Int[Tensor, "*axis row node"]
    ) -> tuple[Float[Tensor, "row node width"], Float[Tensor, "row node width"]]:
        """For keys and queries of the dtype of `like`."""
        rotary = self._rotary[0]
        if self.axis_of is None:
            return rotary(like, position_ids)
        parts = zip(*(rotary(like, positions) for positions in position_ids))
        index = self.axis_of.expand(1, *position_ids.shape[1:], -1)
        cosines, sines = (torch.stack(part).gather(0, index)[0] for part in parts)
        return cosines, sines


def drafted_tokens(target: Target, ids: Int[Tensor, "drafted"]) -> tuple[list[int], list[int]]:
    """Which of the drafted model ids the target generates, by their numbers, and the target's tokens for them."""
    tokens = {model_id: token for token, model_id in enumerate(target.vocabulary.tolist())}
    pairs = [(number, tokens[model_id]) for number, model_id in enumerate(ids.tolist()) if model_id in tokens]
    if not pairs:
        raise MmspecError("the drafter drafts none of the ids that this target generates: it is another model's")
    return [number for number, _ in pairs], [token for _, token in pairs]


def check_size(folder: Path, target: Target, **sizes: int) -> None:
    """Raise MmspecError for a drafter of a target of other sizes, given by what they are called in config.json."""
    for key, size in sizes.items():
        if size != target.hidden_size:
            raise MmspecError(
                f"drafter {str(folder)!r} was trained for another target: its {key} is {size}, this target's "
                f"hidden_size is {target.hidden_size}; use one for this target"
            )


def layers_misfit(numbers: Sequence[int], config: PreTrainedConfig) -> str:
    """Why a target of this text configuration does not have the hidden states of these numbers; "" if it has."""
    count = config.num_hidden_layers
    if numbers and min(numbers) >= 0 and max(numbers) <= count:
        return ""
    return f"it reads hidden states {list(numbers)}, the model has 0 to {count}"


def check_layers(folder: Path, target: Target, numbers: Sequence[int]) -> tuple[int, ...]:
    """The numbers of layers whose inputs a drafter reads. Raises MmspecError for those that the target has not."""
    if reason := layers_misfit(numbers, target.model.config.get_text_config()):
        raise MmspecError(f"drafter {str(folder)!r} is another model's: {reason}")
    return tuple(int(number) for number in numbers)
