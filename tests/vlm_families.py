"""Random models of transformers' families that read pictures or sounds, and what their processors would give them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
import transformers as hub
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

# Token ids with a meaning, which no model says: its head has zeros in their rows.
IMAGE, START, END, ROW, VIDEO, FIRST = 60, 61, 62, 63, 59, 58
WORDS, SPECIAL = 64, (0, 1, FIRST - 1, FIRST, VIDEO, IMAGE, START, END, ROW)
WINDOW = 8

TEXT = dict(
    vocab_size=WORDS,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
    tie_word_embeddings=False,
)
EYE = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
)
SIGLIP = EYE | dict(model_type="siglip_vision_model", vision_use_head=False)
CLIP = EYE | dict(model_type="clip_vision_model", projection_dim=16)
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
MARKS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
MIXED = dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])

# Pictures of a row, each by its height and width; families with pictures of one size do not look at these.
Sizes = list[tuple[int, int]]
ROWS: tuple[Sizes, ...] = ([], [(2, 3)], [(1, 2), (3, 2)])

# Inputs of a row beside its ids, and the ids that stand for each picture.
Seen = tuple[dict[str, Tensor], list[list[int]]]


def text(model_type: str = "llama", **changes) -> dict:
    """The configuration of a small text model."""
    return TEXT | {"model_type": model_type} | changes


def draw(*shape: int) -> Tensor:
    """Random pixels."""
    return torch.randn(*shape, dtype=torch.float64)


def squares(count: int, side: int = 16) -> Callable[[Sizes], Seen]:
    """Pictures of one size, `count` tokens each."""
    return lambda sizes: ({"pixel_values": draw(len(sizes), 3, side, side)}, [[IMAGE] * count] * len(sizes))


def patches(*shape: int, merge: int = 2) -> Callable[[Sizes], Seen]:
    """Patches of all pictures one after the other, with their grids."""

    def see(sizes: Sizes) -> Seen:
        grids = torch.tensor([[1, merge * height, merge * wide] for height, wide in sizes])
        return (
            {"pixel_values": draw(int(grids.prod(1).sum()), *shape), "image_grid_thw": grids},
            [[IMAGE] * (height * wide) for height, wide in sizes],
        )

    return see


def tiled(sizes: Sizes) -> Seen:
    """LLaVA-NeXT: a small picture and tiles of the large one, as many tokens as it makes vectors."""
    shapes = torch.tensor([[16, 32] if wide > height else [32, 16] for height, wide in sizes])
    return {"pixel_values": draw(len(sizes), 3, 3, 16, 16), "image_sizes": shapes}, [[]] * len(sizes)


def padded(count: int) -> Callable[[Sizes], Seen]:
    """Idefics: pictures `row picture`, smaller ones padded and masked."""

    def see(sizes: Sizes) -> Seen:
        mask = torch.zeros(1, len(sizes), 16, 16, dtype=torch.bool)
        for picture, (height, wide) in enumerate(sizes):
            mask[0, picture, : 4 + 4 * height, : 4 + 4 * wide] = True
        return (
            {"pixel_values": draw(1, len(sizes), 3, 16, 16) * mask[:, :, None], "pixel_attention_mask": mask},
            [[IMAGE] * count] * len(sizes),
        )

    return see


def pixtral(sizes: Sizes) -> Seen:
    """Pictures of their own sizes, padded to the largest, with an end of each row."""
    shapes = torch.tensor([[8 * height, 8 * wide] for height, wide in sizes])
    high, wide = shapes.max(0).values.tolist()
    ids = [([IMAGE] * wide + [ROW]) * (height - 1) + [IMAGE] * wide + [END] for height, wide in sizes]
    return {"pixel_values": draw(len(sizes), 3, high, wide), "image_sizes": shapes}, ids


def placed(sizes: Sizes) -> Seen:
    """Gemma 4: patches of each picture and their places, padded."""
    places = torch.full((len(sizes), 24, 2), -1)
    for picture, (height, wide) in enumerate(sizes):
        places[picture, : 4 * height * wide] = torch.cartesian_prod(torch.arange(2 * wide), torch.arange(2 * height))
    return {"pixel_values": draw(len(sizes), 24, 48), "image_position_ids": places}, [
        [IMAGE] * (height * wide) for height, wide in sizes
    ]


def coded(sizes: Sizes) -> Seen:
    """Emu3: rows of codes, each with its end."""
    shapes = torch.tensor([[8 * height, 8 * wide] for height, wide in sizes])
    return {"pixel_values": draw(len(sizes), 3, 24, 24), "image_sizes": shapes}, [
        [IMAGE] * (height * (wide + 1)) for height, wide in sizes
    ]


def heard(frames: int, tokens: int, mask: bool) -> Callable[[Sizes], Seen]:
    """Sounds as spectrograms of 8 bands."""

    def listen(sizes: Sizes) -> Seen:
        found = {"input_features": draw(len(sizes), 8, frames)}
        if mask:
            found["feature_attention_mask"] = torch.ones(len(sizes), frames, dtype=torch.long)
        return found, [[IMAGE] * tokens] * len(sizes)

    return listen


@dataclass
class Family:
    """A family's configuration, how it sees, and what its processor calls text, pictures and answers."""

    config: Callable[[], PreTrainedConfig]
    see: Callable[[Sizes], Seen]
    kinds: dict[str, list[int]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64


def qwen_eye(**changes) -> dict:
    return dict(depth=2, hidden_size=32, intermediate_size=24, num_heads=2, patch_size=4, **changes)


def llava(kind: str, vision: dict, words: dict, **changes) -> Callable[[], PreTrainedConfig]:
    """The configuration of LLaVA and its like."""
    changes = {"tie_word_embeddings": False} | changes
    return lambda: getattr(hub, kind)(text_config=words, vision_config=vision, **changes)


NEXT = dict(image_token_index=IMAGE, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]], vision_feature_layer=-1)
QWEN = dict(mm_token_type_ids=[0, 1, 0])
FAMILIES: dict[str, Family] = {
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
    "idefics2": Family(
        llava(
            "Idefics2Config",
            EYE,
            text("mistral", sliding_window=WINDOW),
            perceiver_config=dict(
                hidden_size=32,
                resampler_n_latents=3,
                resampler_depth=1,
                resampler_n_heads=2,
                resampler_head_dim=8,
                num_key_value_heads=1,
            ),
            image_token_id=IMAGE,
        ),
        padded(3),
    ),
    "idefics3": Family(llava("Idefics3Config", EYE, text(), image_token_id=IMAGE, scale_factor=2), padded(4)),
    "mistral3": Family(
        llava(
            "Mistral3Config",
            EYE | dict(model_type="pixtral", patch_size=4, image_size=64),
            text("mistral", sliding_window=WINDOW),
            image_token_index=IMAGE,
        ),
        pixtral,
    ),
    "glm4v": Family(
        llava(
            "Glm4vConfig",
            qwen_eye(out_hidden_size=32, image_size=16),
            text("glm4v_text", rope_parameters=MROPE),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=START,
            image_end_token_id=END,
            video_start_token_id=FIRST,
            video_end_token_id=FIRST - 1,
        ),
        patches(96),
        QWEN,
    ),
    "deepseek_vl": Family(llava("DeepseekVLConfig", SIGLIP, text(), image_token_id=IMAGE), squares(16)),
    "ovis2": Family(
        llava(
            "Ovis2Config",
            EYE | dict(vocab_size=24, hidden_stride=2),
            text("qwen2"),
            image_token_id=IMAGE,
            visual_indicator_token_ids=[START, END, ROW, FIRST, FIRST - 1],
            vocab_size=WORDS,
            hidden_size=32,
        ),
        squares(4),
    ),
    "paligemma": Family(
        llava(
            "PaliGemmaConfig",
            SIGLIP,
            text("gemma"),
            image_token_index=IMAGE,
            projection_dim=32,
            hidden_size=32,
        ),
        squares(16),
        dict(token_type_ids=[0, 0, 1]),
    ),
    "gemma3": Family(
        llava(
            "Gemma3Config",
            SIGLIP,
            text("gemma3_text", query_pre_attn_scalar=8, **MIXED),
            mm_tokens_per_image=4,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        ),
        squares(4),
        dict(token_type_ids=[0, 1, 0]),
    ),
    "gemma4": Family(
        llava(
            "Gemma4Config",
            dict(
                model_type="gemma4_vision",
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                pooling_kernel_size=2,
                patch_size=4,
                position_embedding_size=16,
            ),
            text(
                "gemma4_text",
                num_hidden_layers=4,
                layer_types=["sliding_attention", "full_attention"] * 2,
                sliding_window=WINDOW,
                num_kv_shared_layers=2,
                global_head_dim=16,
                hidden_size_per_layer_input=8,
                vocab_size_per_layer_input=WORDS,
                final_logit_softcapping=20.0,
                use_bidirectional_attention="vision",
            ),
            boi_token_id=START,
            eoi_token_id=END,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=FIRST,
            boa_token_id=None,
        ),
        placed,
        QWEN,
    ),
    "aya_vision": Family(
        llava("AyaVisionConfig", SIGLIP, text("cohere2", logit_scale=0.5, **MIXED), image_token_index=IMAGE),
        squares(4),
    ),
    "cohere2_vision": Family(
        llava(
            "Cohere2VisionConfig",
            SIGLIP,
            text("cohere2", logit_scale=0.5, **MIXED),
            image_token_id=IMAGE,
            alignment_intermediate_size=24,
        ),
        squares(4),
    ),
    "janus": Family(
        llava(
            "JanusConfig",
            EYE | dict(projection_dim=32, num_image_tokens=16, mlp_ratio=2.0),
            text(),
            vq_config=dict(
                embed_dim=8,
                num_embeddings=20,
                latent_channels=32,
                base_channels=32,
                channel_multiplier=[1, 1],
                num_res_blocks=1,
                projection_dim=32,
                image_token_embed_dim=32,
                num_patches=4,
            ),
            image_token_id=IMAGE,
        ),
        squares(16),
    ),
    "emu3": Family(
        lambda: hub.Emu3Config(
            text_config=text("emu3_text_model", attention_dropout=0.0),
            vq_config=dict(
                codebook_size=20,
                embed_dim=4,
                latent_channels=4,
                base_channels=32,
                channel_multiplier=[1, 1, 1, 1],
                num_res_blocks=1,
                attn_resolutions=[],
                hidden_size=32,
            ),
            vocabulary_map={"<image>": IMAGE, "<|extra_200|>": ROW}
            | {f"<|visual token {code:06}|>": 30 + code for code in range(20)},
        ),
        coded,
    ),
    "got_ocr2": Family(
        llava(
            "GotOcr2Config",
            EYE | dict(image_size=32, output_channels=16, window_size=4, global_attn_indexes=[1], mlp_dim=24),
            text("qwen2"),
            image_token_index=IMAGE,
        ),
        squares(4, 32),
    ),
    "kimi_k25": Family(
        llava(
            "Kimi_K25Config",
            dict(
                patch_size=4,
                pos_emb_height=4,
                pos_emb_width=4,
                num_attention_heads=2,
                num_hidden_layers=2,
                hidden_size=16,
                intermediate_size=24,
            ),
            text(
                "deepseek_v3",
                head_dim=4,
                num_key_value_heads=4,
                kv_lora_rank=8,
                q_lora_rank=8,
                qk_rope_head_dim=4,
                qk_nope_head_dim=8,
                v_head_dim=8,
                n_routed_experts=4,
                n_group=1,
                topk_group=1,
                num_experts_per_tok=2,
                first_k_dense_replace=1,
                moe_intermediate_size=24,
            ),
            projection_hidden_size=16,
            **MARKS,
        ),
        patches(3, 4, 4),
    ),
    "qwen2_audio": Family(
        lambda: hub.Qwen2AudioConfig(
            text_config=text("qwen2"),
            audio_config=dict(
                model_type="qwen2_audio_encoder",
                d_model=16,
                encoder_layers=1,
                encoder_attention_heads=2,
                encoder_ffn_dim=24,
                num_mel_bins=8,
                max_source_positions=10,
            ),
            audio_token_index=IMAGE,
            tie_word_embeddings=False,
        ),
        heard(20, 5, mask=True),
    ),
    "voxtral": Family(
        lambda: hub.VoxtralConfig(
            text_config=text(),
            audio_config=dict(
                model_type="voxtral_encoder",
                hidden_size=16,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_mel_bins=8,
                max_source_positions=20,
            ),
            audio_token_id=IMAGE,
            tie_word_embeddings=False,
        ),
        heard(40, 5, mask=False),
    ),
}


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights so large that its outputs depend on everything; it never says a special token."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embed" in name:
            torch.nn.init.normal_(weight, std=3 / weight.shape[-1] ** 0.5)
        elif weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.6 / weight[0].numel() ** 0.5)
        else:
            weight.data.add_(torch.randn_like(weight), alpha=0.2)
    head = model.get_output_embeddings().weight
    torch.nn.init.normal_(head, std=5 / head.shape[-1] ** 0.5)
    head.data[list(SPECIAL)] = 0
    return model


@cache
def model(name: str) -> PreTrainedModel:
    """A random model of a family."""
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = loud(hub.AutoModelForMultimodalLM.from_config(family.config()))
    found.generation_config.eos_token_id = None
    found.set_experts_implementation("eager")
    return found.to(family.dtype).eval()


def asked(name: str, sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """What a processor gives for one row: a question about pictures of these sizes."""
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        seen, tokens = family.see(sizes) if sizes else ({}, [])
        if family.see is tiled and sizes:
            with torch.inference_mode():
                features = model(name).model.get_image_features(**seen, return_dict=True).pooler_output
            tokens = [[IMAGE] * len(part) for part in features]
        ids = [1, 5, 6]
        for picture in tokens:
            ids += [START, *picture, END, 7]
        ids += torch.randint(3, 50, (7 - 2 * len(sizes),)).tolist()
    row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long), **seen}
    pictured = (row["input_ids"] == IMAGE).long()
    return row | {key: torch.tensor(kinds)[pictured] for key, kinds in family.kinds.items()}
