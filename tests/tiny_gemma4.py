"""A random Gemma 4 whose layers share keys and values, and assistants in the layout in which they are published."""

from functools import cache

import torch
from text_families import build
from tiny_layouts import V, draw
from torch import Tensor

from mmspec.targets.causal import CausalTarget

WINDOW, BACKBONE, WIDTH, INNER, HEADS, CENTROIDS, BEST = 4, 32, 16, 24, 4, 10, 3
KINDS = ["sliding_attention", "sliding_attention", "full_attention"]
# Heads of keys, and their width, by the kind of the layer.
KEYS = {"sliding_attention": (2, 8), "full_attention": (1, 16)}
ATTENTION = dict(
    head_dim=8,
    global_head_dim=16,
    num_attention_heads=HEADS,
    num_key_value_heads=2,
    num_global_key_value_heads=1,
    attention_k_eq_v=True,
    sliding_window=WINDOW,
)


@cache
def gemma4_target() -> CausalTarget:
    """Six layers, of which layers 2 and 3 are the last sliding and full ones that keep keys; wide heads at the end."""
    options = dict(
        vocab_size=V,
        num_hidden_layers=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
        + ["sliding_attention", "full_attention"],
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=V,
        hidden_size_per_layer_input=4,
    )
    return CausalTarget(build("Gemma4", options | ATTENTION))


def assistant_config(ordered: bool = False, **of_text) -> dict:
    """As published: `gemma4_assistant` around a `gemma4_text` all of whose layers share keys and values."""
    text = dict(
        model_type="gemma4_text",
        vocab_size=V,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=3,
        num_kv_shared_layers=3,
        layer_types=list(KINDS),
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=0,
        enable_moe_block=False,
        use_double_wide_mlp=False,
        hidden_activation="gelu_pytorch_tanh",
        final_logit_softcapping=None,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
        },
    )
    return dict(
        architectures=["Gemma4AssistantForCausalLM"],
        model_type="gemma4_assistant",
        backbone_hidden_size=BACKBONE,
        use_ordered_embeddings=ordered,
        num_centroids=CENTROIDS,
        centroid_intermediate_top_k=BEST,
        tie_word_embeddings=True,
        text_config=text | ATTENTION | of_text,
        boi_token_id=3,
    )


def assistant_weights(ordered: bool = False, vocabulary: int = V) -> dict[str, Tensor]:
    """Random tensors of the published names."""
    shapes: dict = {
        "pre_projection.weight": (WIDTH, 2 * BACKBONE),
        "post_projection.weight": (BACKBONE, WIDTH),
        "model.embed_tokens.weight": (vocabulary, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for number, kind in enumerate(KINDS):
        layer, head = f"model.layers.{number}.", KEYS[kind][1]
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (HEADS * head, WIDTH),
            f"{layer}self_attn.o_proj.weight": (WIDTH, HEADS * head),
            f"{layer}self_attn.q_norm.weight": (head,),
            f"{layer}layer_scalar": (1,),
            **{f"{layer}mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")},
            f"{layer}mlp.down_proj.weight": (WIDTH, INNER),
        }
        for part in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            shapes[f"{layer}{part}_layernorm.weight"] = (WIDTH,)
    if ordered:
        shapes["masked_embedding.centroids.weight"] = (CENTROIDS, WIDTH)
    weights = draw(shapes)
    for number in range(len(KINDS)):
        weights[f"model.layers.{number}.layer_scalar"] += 1
    if ordered:
        chance = torch.Generator().manual_seed(4)
        weights["masked_embedding.token_ordering"] = torch.randperm(V, generator=chance)
    return weights
