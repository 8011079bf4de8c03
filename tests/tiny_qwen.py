"""Random models of Qwen3-Next's and Qwen3.5's families with linear and full attention in turn, of the size of
`tiny_layouts`.
"""

from functools import cache

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
