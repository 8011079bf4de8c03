"""Less known families, with small configurations."""

import torch
import transformers as hub
from vlm_inputs import (
    CLIP,
    END,
    EYE,
    FIRST,
    IMAGE,
    MARKS,
    MIXED,
    MROPE,
    NEXT,
    QWEN,
    ROW,
    SIGLIP,
    START,
    VIDEO,
    WINDOW,
    WORDS,
    Family,
    heard,
    lined,
    llava,
    merged,
    patches,
    pixtral,
    qwen_eye,
    spoken,
    squares,
    text,
    tiled,
    twice,
)

GLM = dict(
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    image_start_token_id=START,
    image_end_token_id=END,
    video_start_token_id=FIRST,
    video_end_token_id=FIRST - 1,
)
EXPERTS = dict(
    n_routed_experts=4,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    moe_intermediate_size=24,
)
HEARING = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_mel_bins=8)
SPEECH = dict(
    num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=24, d_model=16, output_dim=32
)
EXTRAS: dict[str, Family] = {
    "granite_speech": Family(
        lambda: hub.GraniteSpeechConfig(
            text_config=text("granite", logits_scaling=0.5),
            encoder_config=dict(
                input_dim=8,
                num_layers=1,
                hidden_dim=16,
                num_heads=2,
                dim_head=8,
                output_dim=12,
                context_size=10,
                max_pos_emb=10,
                conv_kernel_size=3,
            ),
            projector_config=dict(
                model_type="blip_2_qformer",
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=24,
                encoder_hidden_size=16,
            ),
            audio_token_index=IMAGE,
            window_size=10,
            downsample_rate=5,
            has_lora_adapter=False,
            tie_word_embeddings=False,
        ),
        spoken,
    ),
    "aria": Family(
        llava(
            "AriaConfig",
            EYE | dict(model_type="idefics3_vision"),
            text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            image_token_index=IMAGE,
            projector_patch_to_query_dict={16: 4},
        ),
        squares(4),
    ),
    "paddleocr_vl": Family(
        llava("PaddleOCRVLConfig", EYE, text("paddleocr_vl_text", rope_parameters=MROPE), **MARKS),
        patches(3, 4, 4),
        QWEN,
    ),
    "ernie4_5_vl_moe": Family(
        llava(
            "Ernie4_5_VLMoeConfig",
            qwen_eye(),
            text(
                "ernie4_5_vl_moe_text",
                rope_parameters=MROPE,
                moe_intermediate_size=[24, 16],
                moe_k=2,
                moe_num_experts=4,
                moe_num_shared_experts=1,
            ),
            **GLM,
        ),
        patches(48),
        dict(mm_token_type_ids=[0, 1, 0], moe_mm_token_type_ids=[0, 1, 0]),
    ),
    "lighton_ocr": Family(
        llava(
            "LightOnOcrConfig",
            EYE | dict(model_type="pixtral", patch_size=4, image_size=64),
            text("qwen3"),
            image_token_id=IMAGE,
        ),
        pixtral,
    ),
    "video_llama_3": Family(
        llava("VideoLlama3Config", EYE, text("qwen2"), image_token_id=IMAGE, video_token_id=VIDEO), merged
    ),
    "audioflamingo3": Family(
        lambda: hub.AudioFlamingo3Config(
            text_config=text("qwen2"),
            audio_config=HEARING | dict(model_type="audioflamingo3_encoder", max_source_positions=10),
            audio_token_id=IMAGE,
            tie_word_embeddings=False,
        ),
        heard(20, 5, "input_features_mask"),
    ),
    "glm46v": Family(
        llava(
            "Glm46VConfig",
            qwen_eye(model_type="glm4v_vision", out_hidden_size=32, image_size=16),
            text("glm4v_text", rope_parameters=MROPE),
            **GLM,
        ),
        patches(96),
        QWEN,
    ),
    "glm_ocr": Family(
        llava(
            "GlmOcrConfig",
            qwen_eye(out_hidden_size=32, image_size=16),
            text("glm_ocr_text", rope_parameters=MROPE),
            **GLM,
        ),
        patches(96),
        QWEN,
    ),
    "glm4v_moe": Family(
        llava(
            "Glm4vMoeConfig",
            qwen_eye(out_hidden_size=32, image_size=16),
            text("glm4v_moe_text", rope_parameters=MROPE | {"partial_rotary_factor": 1.0}, **EXPERTS),
            **GLM,
        ),
        patches(96),
        QWEN,
    ),
    "llava_next_video": Family(llava("LlavaNextVideoConfig", CLIP, text(), video_token_index=VIDEO, **NEXT), tiled),
    "hunyuan_vl": Family(
        llava(
            "HunYuanVLConfig",
            EYE | dict(out_hidden_size=32, text_hidden_size=32, max_image_size=32, img_max_token_num=64),
            text(
                "hunyuan_vl_text",
                rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1, 1]},
            ),
            image_token_id=IMAGE,
            image_start_token_id=START,
            image_end_token_id=END,
            image_newline_token_id=ROW,
        ),
        lined,
        QWEN,
    ),
    "glmasr": Family(
        lambda: hub.GlmAsrConfig(
            text_config=text(rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
            audio_config=HEARING | dict(model_type="glmasr_encoder", max_position_embeddings=40),
            audio_token_id=IMAGE,
            tie_word_embeddings=False,
        ),
        heard(40, 5, "input_features_mask"),
    ),
    "musicflamingo": Family(
        lambda: hub.MusicFlamingoConfig(
            text_config=text("qwen2"),
            audio_config=HEARING | dict(model_type="audioflamingo3_encoder", max_source_positions=10),
            audio_token_id=IMAGE,
            audio_bos_token_id=START,
            audio_eos_token_id=END,
            rope_parameters={"rope_type": "default", "rope_theta": 1200.0, "partial_rotary_factor": 0.5},
            tie_word_embeddings=False,
        ),
        heard(20, 5, "input_features_mask"),
    ),
    "qwen3_asr": Family(
        lambda: hub.Qwen3ASRConfig(
            text_config=text("qwen3"),
            audio_config=SPEECH
            | dict(model_type="qwen3_asr_encoder", n_window=50, n_window_infer=100, downsample_hidden_size=8),
            audio_token_id=IMAGE,
            timestamp_token_id=FIRST,
            pad_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=False,
        ),
        heard(100, 13, "input_features_mask"),
    ),
    "exaone4_5": Family(
        llava(
            "Exaone4_5_Config",
            qwen_eye(out_hidden_size=32, fullatt_block_indexes=[1], window_size=16, num_key_value_heads=1),
            text("exaone4", **MIXED),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        patches(96),
    ),
    "qwen2_5_omni_thinker": Family(
        llava(
            "Qwen2_5OmniThinkerConfig",
            qwen_eye(out_hidden_size=32, fullatt_block_indexes=[1], window_size=16),
            text("qwen2_5_omni_text", rope_parameters=MROPE),
            audio_config=SPEECH | dict(n_window=4),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            audio_token_index=FIRST,
            audio_start_token_id=FIRST - 1,
            audio_end_token_id=ROW,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        patches(96),
    ),
    "deepseek_vl_hybrid": Family(
        llava(
            "DeepseekVLHybridConfig",
            SIGLIP,
            text(),
            high_res_vision_config=EYE
            | dict(
                model_type="sam_vision_model",
                image_size=32,
                output_channels=8,
                window_size=4,
                global_attn_indexes=[1],
                mlp_dim=24,
            ),
            image_token_id=IMAGE,
        ),
        twice,
    ),
    "qwen3_omni_moe_thinker": Family(
        llava(
            "Qwen3OmniMoeThinkerConfig",
            qwen_eye(out_hidden_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
            text(
                "qwen3_omni_moe_text",
                rope_parameters=MROPE,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=24,
            ),
            audio_config=SPEECH | dict(n_window=50, n_window_infer=100, downsample_hidden_size=8),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=FIRST,
            audio_start_token_id=FIRST - 1,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        patches(96),
    ),
    "qwen2_5_omni_thinker of sounds": Family(
        llava(
            "Qwen2_5OmniThinkerConfig",
            qwen_eye(out_hidden_size=32, fullatt_block_indexes=[1], window_size=16),
            text("qwen2_5_omni_text", rope_parameters=MROPE),
            audio_config=SPEECH | dict(n_window=4),
            image_token_index=FIRST,
            video_token_index=VIDEO,
            audio_token_index=IMAGE,
            audio_start_token_id=START,
            audio_end_token_id=END,
            vision_start_token_id=FIRST - 1,
            vision_end_token_id=ROW,
        ),
        heard(16, 4, "feature_attention_mask"),
    ),
    "gemma4 of sounds": Family(
        lambda: hub.Gemma4Config(
            text_config=text(
                "gemma4_text",
                sliding_window=WINDOW,
                layer_types=MIXED["layer_types"],
                hidden_size_per_layer_input=8,
                vocab_size_per_layer_input=WORDS,
            ),
            audio_config=dict(
                model_type="gemma4_audio",
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                subsampling_conv_channels=[8, 2],
                output_proj_dims=24,
                attention_chunk_size=4,
                attention_context_left=5,
            ),
            audio_token_id=IMAGE,
            image_token_id=FIRST,
            video_token_id=VIDEO,
            boa_token_id=START,
            eoa_token_index=END,
            tie_word_embeddings=False,
        ),
        heard(16, 4, "input_features_mask", transposed=True),
        dtype=torch.float32,  # its audio tower knows no other wide precision
    ),
}
