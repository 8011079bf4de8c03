"""LLaVA, Qwen-VL and their like, with small configurations."""

from vlm_inputs import (
    CLIP,
    EYE,
    IMAGE,
    MARKS,
    MIXED,
    MROPE,
    NEXT,
    QWEN,
    SIGLIP,
    VIDEO,
    WINDOW,
    Family,
    llava,
    padded,
    patches,
    pixtral,
    qwen_eye,
    squares,
    text,
    tiled,
)

LLAVAS: dict[str, Family] = {
    "llava": Family(llava("LlavaConfig", CLIP, text(), image_token_index=IMAGE, vision_feature_layer=-1), squares(16)),
    "llava of windowed mistral": Family(
        llava(
            "LlavaConfig",
            CLIP,
            text("mistral", sliding_window=WINDOW),
            image_token_index=IMAGE,
            vision_feature_layer=[0, -1],
        ),
        squares(16),
    ),
    "llava of gemma2": Family(
        llava("LlavaConfig", CLIP, text("gemma2", **MIXED), image_token_index=IMAGE, vision_feature_layer=-1),
        squares(16),
    ),
    "pixtral": Family(
        llava(
            "LlavaConfig",
            EYE | dict(model_type="pixtral", patch_size=8, image_size=64),
            text("mistral", sliding_window=None),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        pixtral,
    ),
    "llava_next": Family(llava("LlavaNextConfig", CLIP, text(), **NEXT), tiled),
    "llava_onevision": Family(
        llava("LlavaOnevisionConfig", SIGLIP, text("qwen2"), video_token_index=VIDEO, **NEXT), tiled
    ),
    "vipllava": Family(
        llava("VipLlavaConfig", CLIP, text(), image_token_index=IMAGE, vision_feature_layer=[-1, -2]), squares(16)
    ),
    "qwen2_vl": Family(
        llava(
            "Qwen2VLConfig",
            dict(depth=2, embed_dim=32, hidden_size=32, mlp_ratio=1, num_heads=2, patch_size=4),
            text("qwen2_vl_text", rope_parameters=MROPE),
            **MARKS,
        ),
        patches(96),
        QWEN,
    ),
    "qwen2_5_vl": Family(
        llava(
            "Qwen2_5_VLConfig",
            qwen_eye(out_hidden_size=32, fullatt_block_indexes=[1], window_size=16),
            text("qwen2_5_vl_text", rope_parameters=MROPE),
            **MARKS,
        ),
        patches(96),
        QWEN,
    ),
    "qwen3_vl": Family(
        llava(
            "Qwen3VLConfig",
            qwen_eye(out_hidden_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
            text("qwen3_vl_text", rope_parameters=MROPE),
            **MARKS,
        ),
        patches(96),
        QWEN,
    ),
    "qwen3_vl_moe": Family(
        llava(
            "Qwen3VLMoeConfig",
            qwen_eye(out_hidden_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
            text(
                "qwen3_vl_moe_text",
                rope_parameters=MROPE,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=24,
            ),
            **MARKS,
        ),
        patches(96),
        QWEN,
    ),
    "internvl": Family(
        llava("InternVLConfig", EYE, text("qwen2"), image_token_id=IMAGE, downsample_ratio=0.5), squares(4)
    ),
    "smolvlm": Family(llava("SmolVLMConfig", EYE, text(), image_token_id=IMAGE, scale_factor=2), padded(4)),
}
