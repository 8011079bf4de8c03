"""Random weights and configurations of drafters in the layouts that others publish."""

import torch
from tiny_layouts import KV, LAYER_CONFIG, D, V, draw, layer_shapes
from torch import Tensor

VD = 12
EAGLE3 = LAYER_CONFIG | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": VD, "model_type": "llama"}
SPECULATORS_EAGLE3 = {
    "speculators_model_type": "eagle3",
    "architectures": ["Eagle3Speculator"],
    "transformer_layer_config": LAYER_CONFIG | {"model_type": "qwen3", "head_dim": 16},
    "draft_vocab_size": VD,
    "norm_before_residual": True,
    "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "some/model"}},
}
DEEPSPEC_EAGLE3 = LAYER_CONFIG | {"architectures": ["Qwen3Eagle3Model"], "model_type": "qwen3", "head_dim": 16}
AUX = {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}


def eagle3_weights(prefix: str, head: int = 8, qk_norm: bool = False, drafted: int = VD, **extra) -> dict[str, Tensor]:
    shapes: dict = {"fc.weight": (D, 3 * D), "norm.weight": (D,), "lm_head.weight": (drafted, D)}
    shapes |= layer_shapes(prefix, 2 * D, head=head)
    shapes |= {f"{prefix}hidden_norm.weight": (D,), f"{prefix}input_layernorm.weight": (D,)}
    if qk_norm:
        shapes |= {f"{prefix}self_attn.{part}_norm.weight": (head,) for part in "qk"}
    weights = draw(shapes | extra)
    if drafted != V:
        ids = torch.arange(drafted) * 3 + 1
        weights |= {
            "d2t": ids - torch.arange(drafted),
            "t2d": torch.zeros(V, dtype=torch.bool).index_fill(0, ids, True),
        }
    return weights


LAYERS, BLOCK, MASK, RANK = 2, 5, 38, 6
QWEN3 = LAYER_CONFIG | {"model_type": "qwen3", "head_dim": 16, "num_hidden_layers": LAYERS}
ZLAB = QWEN3 | {
    "architectures": ["DFlashDraftModel"],
    "block_size": BLOCK,
    "num_target_layers": 2,
    "layer_types": ["full_attention"] * LAYERS,
    "dflash_config": {"target_layer_ids": [0, 1], "mask_token_id": MASK},
}
SPECULATORS_DFLASH = {
    "speculators_model_type": "dflash",
    "transformer_layer_config": QWEN3,
    "block_size": BLOCK,
    "draft_vocab_size": 12,
    "mask_token_id": MASK,
    "aux_hidden_state_layer_ids": [0, 1],
    "sample_from_anchor": False,
    "projector_type": "dflash",
    "emb_dim": 256,
    "speculators_config": {"algorithm": "dflash", "verifier": {"name_or_path": "some/model"}},
}
MARKOV = {"markov_rank": RANK, "enable_confidence_head": True, "confidence_head_with_markov": True}


def dflash_weights(drafted: int = 0, markov: str = "") -> dict[str, Tensor]:
    shapes: dict = {"fc.weight": (D, 2 * D), "hidden_norm.weight": (D,), "norm.weight": (D,)}
    for number in range(LAYERS):
        shapes |= layer_shapes(f"layers.{number}.", head=16) | {f"layers.{number}.input_layernorm.weight": (D,)}
        shapes |= {f"layers.{number}.self_attn.{part}_norm.weight": (16,) for part in "qk"}
    if drafted:
        shapes |= {"embed_tokens.weight": (V, D), "lm_head.weight": (drafted, D)}
    if markov:
        shapes |= {"markov_head.markov_w1.weight": (V, RANK), "markov_head.markov_w2.weight": (drafted, RANK)}
        shapes |= {"confidence_head.proj.weight": (1, D + RANK), "confidence_head.proj.bias": (1,)}
    if markov == "gated":
        shapes |= {"markov_head.gate_proj.weight": (RANK, D + RANK), "markov_head.gate_proj.bias": (RANK,)}
    if markov == "rnn":
        shapes |= {
            "markov_head.joint_proj.weight": (3 * RANK, D + 2 * RANK),
            "markov_head.joint_proj.bias": (3 * RANK,),
        }
    weights = draw(shapes)
    if 0 < drafted < V:
        ids = torch.arange(drafted) * 3 + 1
        marks = torch.zeros(V, dtype=torch.bool).index_fill(0, ids, True)
        weights |= {"d2t": ids - torch.arange(drafted), "t2d": marks}
    return weights


MEDUSA = {"medusa_num_heads": 3, "medusa_num_layers": 2, "base_model_name_or_path": "some/model"}


def medusa_weights() -> dict[str, Tensor]:
    shapes: dict = {}
    for head in range(3):
        for layer in range(2):
            shapes |= {f"{head}.{layer}.linear.weight": (D, D), f"{head}.{layer}.linear.bias": (D,)}
        shapes[f"{head}.2.weight"] = (V, D)
    return draw(shapes)


def eagle_weights(bias: bool, qkv_bias: bool, vispec: bool = False) -> dict[str, Tensor]:
    kv = KV if not vispec else 4
    shapes: dict = {"embed_tokens.weight": (V, D), "fc.weight": (D, 2 * D)} | layer_shapes("layers.0.", kv=kv)
    if bias:
        shapes["fc.bias"] = (D,)
    if qkv_bias:
        shapes |= {f"layers.0.self_attn.{n}_proj.bias": (c * 8,) for n, c in (("q", 4), ("k", kv), ("v", kv))}
    if vispec:
        shapes |= {"imadpt.q": (2, 4, 8), "img_fc.weight": (D, 2 * D)} | ({"img_fc.bias": (D,)} if bias else {})
        shapes |= {f"imadpt.{part}_proj.weight": (D, D) for part in "kvo"}
        shapes |= {f"imadpt.{part}_proj.bias": (D,) for part in "kv"} if qkv_bias else {}
    return draw(shapes)
