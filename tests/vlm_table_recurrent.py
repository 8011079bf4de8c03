"""Families that read pictures with recurrent or convolutional layers, with small configurations."""

import torch
from vlm_inputs import (
    CLIP,
    EYE,
    IMAGE,
    MARKS,
    MROPE,
    QWEN,
    Family,
    Seen,
    Sizes,
    draw,
    llava,
    patches,
    qwen_eye,
    squares,
    text,
)

LINEAR = dict(
    layer_types=["linear_attention", "full_attention"],
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    rope_parameters=MROPE,
)
CONV = dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24)


def shaped(sizes: Sizes) -> Seen:
    """LFM2-VL: patches of each picture, padded and masked, and how many each side has; two by two become one."""
    shapes = torch.tensor([[2 * height, 2 * wide] for height, wide in sizes])
    mask = (torch.arange(24) < shapes.prod(1)[:, None]).long()
    seen = {"pixel_values": draw(len(sizes), 24, 48), "spatial_shapes": shapes, "pixel_attention_mask": mask}
    return seen, [[IMAGE] * (height * wide) for height, wide in sizes]


RECURRENT: dict[str, Family] = {
    "llava of lfm2": Family(
        llava("LlavaConfig", CLIP, text("lfm2", **CONV), image_token_index=IMAGE, vision_feature_layer=-1), squares(16)
    ),
    "lfm2_vl": Family(
        llava(
            "Lfm2VlConfig",
            EYE | dict(model_type="siglip2_vision_model", num_patches=16),
            text("lfm2", **CONV),
            image_token_id=IMAGE,
            projector_hidden_size=32,
        ),
        shaped,
    ),
    "qwen3_5": Family(
        llava(
            "Qwen3_5Config",
            qwen_eye(out_hidden_size=32, num_position_embeddings=16),
            text("qwen3_5_text", **LINEAR),
            **MARKS,
        ),
        patches(96),
        QWEN,
    ),
    "qwen3_5_moe": Family(
        llava(
            "Qwen3_5MoeConfig",
            qwen_eye(out_hidden_size=32, num_position_embeddings=16),
            text("qwen3_5_moe_text", **LINEAR | EXPERTS),
            **MARKS,
        ),
        patches(96),
        QWEN,
    ),
}
