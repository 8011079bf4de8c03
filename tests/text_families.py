"""One tiny model of every text family of transformers that is known to be right, and of those that are refused."""

from functools import cache

import torch
import transformers as hub
from recurrent_families import RECURRENT, UNSTEADY
from transformers import PreTrainedModel

# Windows and chunks are smaller than the prompts, so that a wrong mask is seen.
WINDOW, CHUNK = 6, 5

SIZE = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)
SLIDING = dict(sliding_window=WINDOW)
MIXED = dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
EXPERTS = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
WIDE = dict(head_dim=8)
LATENT = dict(q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, num_key_value_heads=4)
PER_LAYER = dict(vocab_size_per_layer_input=61, hidden_size_per_layer_input=4)
SHARED = dict(num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2)
ALTUP = dict(altup_num_inputs=2, laurel_rank=4, activation_sparsity_pattern=[0.5, 0.0, 0.5, 0.0])
DEEPSEEK = dict(n_routed_experts=4, n_shared_experts=1, n_group=2, topk_group=1, first_k_dense_replace=1, v_head_dim=8)
LLAMA4 = dict(intermediate_size_mlp=48, attention_chunk_size=CHUNK, no_rope_layers=[1, 0], attn_temperature_tuning=True)
ADDED = dict(attention_bias=True, mlp_bias=True)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
LLAMA3 = YARN | dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)

# Names of transformers' classes before "ForCausalLM" and "Config", and what the family needs beside `SIZE`.
TEXT: dict[str, tuple[str, dict]] = {
    "Llama": ("Llama", ADDED),
    "Llama, YaRN": ("Llama", dict(rope_parameters=YARN)),
    "Qwen2": ("Qwen2", {}),
    "Qwen2, sliding": ("Qwen2", dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)),
    "Qwen3": ("Qwen3", WIDE | dict(attention_bias=True)),
    "Qwen3-MoE": ("Qwen3Moe", WIDE | EXPERTS | dict(decoder_sparse_step=1)),
    "OLMo2": ("Olmo2", {}),
    "OLMo3": ("Olmo3", MIXED),
    "OLMoE": ("Olmoe", EXPERTS),
    "GPT-2": ("GPT2", {}),
    "GPT-NeoX": ("GPTNeoX", {}),
    "OPT": ("OPT", dict(ffn_dim=48, word_embed_proj_dim=16)),
    "StableLM": ("StableLm", dict(use_qkv_bias=True, use_parallel_residual=True, qk_layernorm=True)),
    "Falcon": ("Falcon", dict(alibi=False, bias=True)),
    "GPT-BigCode": ("GPTBigCode", {}),
    "Mistral": ("Mistral", WIDE | SLIDING),
    "Mixtral": ("Mixtral", SLIDING | EXPERTS),
    "Ministral": ("Ministral", WIDE | MIXED),
    "Starcoder2": ("Starcoder2", SLIDING),
    "Phi": ("Phi", dict(qk_layernorm=True)),
    "Phi-3": ("Phi3", SLIDING),
    "GPT-J": ("GPTJ", dict(rotary_dim=4)),
    "CodeGen": ("CodeGen", dict(rotary_dim=4)),
    "Gemma": ("Gemma", WIDE),
    "Gemma 2": ("Gemma2", WIDE | MIXED | dict(attn_implementation="eager", attn_logit_softcapping=5.0)),
    "Gemma 3": ("Gemma3", WIDE | MIXED),
    "Gemma 3n": ("Gemma3n", WIDE | SLIDING | PER_LAYER | SHARED | ALTUP),
    "Gemma 4": ("Gemma4", WIDE | SLIDING | PER_LAYER | SHARED | dict(global_head_dim=16)),
    "GPT-OSS": ("GptOss", WIDE | MIXED | EXPERTS | dict(rope_parameters=YARN, attn_implementation="eager")),
    "EXAONE 4": ("Exaone4", MIXED),
    "Cohere": ("Cohere", dict(use_qk_norm=True, logit_scale=0.3)),
    "Cohere 2": ("Cohere2", MIXED | dict(logit_scale=0.3)),
    "Granite": ("Granite", dict(logits_scaling=3.0, residual_multiplier=0.7, embedding_multiplier=2.0)),
    "GraniteMoE": ("GraniteMoe", EXPERTS | dict(logits_scaling=3.0)),
    "MiniCPM3": ("MiniCPM3", LATENT | dict(dim_model_base=16, v_head_dim=8)),
    "nanochat": ("NanoChat", {}),
    "VaultGemma": ("VaultGemma", WIDE | MIXED | dict(attn_implementation="eager")),
    "Llama 4": ("Llama4", WIDE | EXPERTS | LLAMA4),
    "DeepSeek V3": ("DeepseekV3", LATENT | DEEPSEEK | EXPERTS),
    "SmolLM3": ("SmolLM3", dict(no_rope_layers=[1, 0])),
    "GLM-4": ("Glm4", WIDE | dict(attention_bias=True)),
    "SeedOss": ("SeedOss", WIDE | dict(attention_bias=True)),
    "Helium": ("Helium", WIDE),
    "Nemotron": ("Nemotron", ADDED),
    "Arcee": ("Arcee", ADDED),
    "OLMo": ("Olmo", {}),
    "FlexOLMo": ("FlexOlmo", EXPERTS),
    "Qwen2-MoE": ("Qwen2Moe", EXPERTS | dict(shared_expert_intermediate_size=16)),
    "EXAONE MoE": ("ExaoneMoe", MIXED | EXPERTS | dict(first_k_dense_replace=1)),
    "Cohere 2 MoE": ("Cohere2Moe", WIDE | MIXED | EXPERTS),
    "Granite, sliding": ("GraniteSWA", MIXED | dict(logits_scaling=3.0)),
    "Phi-MoE": ("Phimoe", EXPERTS),
    "MiniMax-M2": ("MiniMaxM2", WIDE | EXPERTS),
    "Ministral 3": ("Ministral3", WIDE),
    "DeepSeek V2": ("DeepseekV2", LATENT | DEEPSEEK | EXPERTS),
    "dots1": ("Dots1", WIDE | EXPERTS | dict(n_routed_experts=4, n_shared_experts=1)),
    "GLM": ("Glm", WIDE),
    "GLM-4-MoE": ("Glm4Moe", WIDE | EXPERTS | dict(n_routed_experts=4, first_k_dense_replace=1)),
    "GLM-4-MoE-lite": ("Glm4MoeLite", LATENT | DEEPSEEK | EXPERTS),
    "Ernie 4.5": ("Ernie4_5", WIDE),
    "Hunyuan": ("HunYuanDenseV1", WIDE),
    "Hunyuan MoE": ("HunYuanMoEV1", WIDE | EXPERTS | dict(moe_topk=2)),
    "BitNet": ("BitNet", {}),
    "DiffLlama": ("DiffLlama", {}),
    "JetMoE": ("JetMoe", dict(num_local_experts=4, num_experts_per_tok=2, kv_channels=8)),
    "CTRL": ("CTRL", dict(dff=48)),
    "BioGPT": ("BioGpt", {}),
    "Youtu": ("Youtu", LATENT | dict(v_head_dim=8)),
    "Apertus": ("Apertus", ADDED | dict(rope_parameters=LLAMA3)),
} | RECURRENT

NEO = dict(num_layers=2, attention_types=[[["global", "local"], 1]])
DYNAMIC = dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)
LONG = DYNAMIC | dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4)
BY_KIND = dict(sliding_attention=dict(rope_type="default", rope_theta=10000.0), full_attention=DYNAMIC)
OWN_LOGITS, POSITIONS = "does not give its own logits", "has positions that depend on the whole sequence"
STATE = "keeps a recurrent state"

# What is refused: as above, and words of the reason.
REFUSED: dict[str, tuple[str, dict, str]] = {
    "GPT-Neo": ("GPTNeo", NEO | dict(window_size=WINDOW), OWN_LOGITS),
    "GPT-Neo, as released": ("GPTNeo", NEO | dict(max_position_embeddings=2048), OWN_LOGITS),
    "BLOOM": ("Bloom", {}, POSITIONS),
    "MPT": ("Mpt", {}, POSITIONS),
    "Falcon, ALiBi": ("Falcon", dict(alibi=True), POSITIONS),
    "Phi-3, longrope": ("Phi3", dict(original_max_position_embeddings=32, rope_parameters=LONG), POSITIONS),
    "Llama, dynamic": ("Llama", dict(rope_parameters=DYNAMIC), POSITIONS),
    "Gemma 3, dynamic": ("Gemma3", WIDE | MIXED | dict(rope_parameters=BY_KIND), POSITIONS),
    "Doge": ("Doge", {}, "attends to a number of keys that it chooses"),
    "xLSTM": ("xLSTM", dict(num_heads=4), STATE),
    "RWKV": ("Rwkv", dict(attention_hidden_size=32), STATE),
} | UNSTEADY


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights, biases, norms and router corrections that are large enough for logits to depend on everything."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        # A tied head would repeat the last token if embeddings were as large as what the layers add.
        loudness = 0.15 if getattr(model.config.get_text_config(), "tie_word_embeddings", False) else 1.0
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                embedding = any(part in name for part in ("embed", "wte", "wpe"))
                torch.nn.init.normal_(weight, std=loudness if embedding else 1.6 / weight.shape[-1] ** 0.5)
            else:
                weight.add_(torch.randn_like(weight) * 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                torch.nn.init.normal_(buffer, std=0.3)
    return model.eval()


def build(kind: str, options: dict) -> PreTrainedModel:
    """A loud model of a family, in float64."""
    options = SIZE | options
    attention = options.pop("attn_implementation", None)
    config_of = getattr(hub, f"{kind}TextConfig", None) or getattr(hub, f"{kind}Config")
    model_of = getattr(hub, f"{kind}ForCausalLM", None) or getattr(hub, f"{kind}LMHeadModel")
    config = config_of(**options)
    if attention:
        config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = loud(model_of(config)).double()
    if "num_experts_per_tok" in options:
        model.set_experts_implementation("eager")
    return model


@cache
def text_family(name: str) -> PreTrainedModel:
    """The tiny model of one of the families of `TEXT`."""
    return build(*TEXT[name])
