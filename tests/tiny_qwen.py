"""Random models of Qwen3-Next's and Qwen3.5's families with linear and full attention in turn, of the sizes in
`tiny_layouts`.
"""

from functools import cache

import torch
import vlm_families
from recurrent_families import LINEAR, SHARED_EXPERT, WIDE
from text_families import build
from tiny_layouts import V

from mmspec.targets.recurrent import RecurrentTarget
from mmspec.targets.registry import target_of

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
SHAPE = WIDE | LINEAR | dict(vocab_size=V, num_hidden_layers=4, layer_types=["linear_attention", "full_attention"] * 2)


@cache
def qwen_target(kind: str) -> RecurrentTarget:
    """Of a class of transformers: Qwen3_5, Qwen3_5Moe or Qwen3Next."""
    experts = {} if kind == "Qwen3_5" else SHARED_EXPERT
    target = target_of(build(kind, SHAPE | experts | dict(rope_parameters=dict(ROPE))))
    assert isinstance(target, RecurrentTarget)
    return target


# Axes of the frequencies of `reading_target`: time, height, width, interleaved.
SECTIONS, AXES = [2, 1, 1], [0, 1, 2, 0]


@cache
def reading_target() -> RecurrentTarget:
    """Qwen3.5 that reads pictures, whose positions turn whole heads."""
    config = vlm_families.FAMILIES["qwen3_5"].config()
    config.text_config.rope_parameters |= {"partial_rotary_factor": 1.0, "mrope_section": SECTIONS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = vlm_families.loud(vlm_families.built(config)).double().eval()
    model.generation_config.eos_token_id = None
    target = target_of(model)
    assert isinstance(target, RecurrentTarget)
    return target
