"""What tiny models of transformers' text families with recurrent layers need beside `text_families.SIZE`."""

EXPERTS = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
SHARED_EXPERT = EXPERTS | dict(shared_expert_intermediate_size=16)
WIDE = dict(head_dim=8)
SSM = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=2, mamba_chunk_size=8)
LINEAR = dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
LAYERS = dict(layer_types=["linear_attention", "full_attention"])
CONV = dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False, tie_word_embeddings=False)
LATENT = dict(kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, num_key_value_heads=4)
DENSE_FIRST = dict(mlp_layer_types=["dense", "sparse"])
KIMI = LATENT | EXPERTS | LAYERS | DENSE_FIRST | dict(q_lora_rank=None, linear_head_dim=8, linear_num_heads=4)
INDEXER = dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=16, indexer_compress_ratio=1)
QWEN4 = INDEXER | dict(layer_types=["linear_attention", "indexed_attention"], hc_count=2, hc_lowrank=8)

# As `text_families.TEXT`: names of classes, and options of configurations.
RECURRENT: dict[str, tuple[str, dict]] = {
    "Mamba 2": ("Mamba2", dict(num_heads=4, head_dim=16, state_size=8, n_groups=2, chunk_size=8)),
    "Falcon-H1": ("FalconH1", SSM | dict(mamba_d_ssm=64, lm_head_multiplier=0.7)),
    "Bamba": ("Bamba", SSM | dict(attn_layer_indices=[1])),
    "Granite 4 H": ("GraniteMoeHybrid", SSM | LAYERS | EXPERTS | dict(shared_intermediate_size=16, logits_scaling=3.0)),
    "Qwen3-Next": ("Qwen3Next", WIDE | LINEAR | LAYERS | SHARED_EXPERT),
    "Qwen3.5": ("Qwen3_5", WIDE | LINEAR | LAYERS),
    "Qwen3.5-MoE": ("Qwen3_5Moe", WIDE | LINEAR | LAYERS | SHARED_EXPERT),
    "LFM2": ("Lfm2", CONV),
    "LFM2-MoE": ("Lfm2Moe", CONV | EXPERTS | dict(num_dense_layers=1)),
    "MiniMax-01": ("MiniMax", WIDE | LAYERS | EXPERTS | dict(block_size=8)),
    "MiniMax-01, eager": ("MiniMax", WIDE | LAYERS | EXPERTS | dict(block_size=8, attn_implementation="eager")),
    "Kimi-Linear": ("KimiLinear", KIMI),
    "OLMo Hybrid": ("OlmoHybrid", LINEAR | LAYERS),
    "Bailing Hybrid": ("BailingHybrid", LATENT | EXPERTS | LAYERS | dict(q_lora_rank=16)),
    "Lara Mini": ("LaraMini", LINEAR | LAYERS | EXPERTS),
    "Zaya": ("Zaya", WIDE | EXPERTS | dict(num_experts_per_tok=1, router_hidden_size=16)),
    "Qwen4": ("Qwen4Exp", WIDE | LINEAR | SHARED_EXPERT | QWEN4),
}

NEMOTRON = dict(
    num_hidden_layers=4,
    layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
    mamba_num_heads=4,
    mamba_head_dim=16,
    ssm_state_size=8,
    n_groups=2,
    head_dim=8,
    n_routed_experts=4,
    moe_intermediate_size=16,
    moe_shared_expert_intermediate_size=16,
    num_experts_per_tok=2,
)
MIXED = dict(num_hidden_layers=3, layers_block_type=["linear_attention", "hybrid", "hybrid"])
FORGETS, STEPS = "forgets the states of its Mamba layers", "keeps the time steps of its Mamba layers"

# What is refused by its configuration alone, with words of the reason.
UNSTEADY: dict[str, tuple[str, dict, str]] = {
    "Mamba": ("Mamba", {}, FORGETS),
    "Falcon-Mamba": ("FalconMamba", {}, FORGETS),
    "Jamba": ("Jamba", EXPERTS | dict(attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4), FORGETS),
    "Zamba": ("Zamba", MIXED, FORGETS),
    "Zamba 2": ("Zamba2", MIXED | dict(n_mamba_heads=4, mamba_d_state=8, mamba_ngroups=2), STEPS),
    "Nemotron-H": ("NemotronH", NEMOTRON, STEPS),
    "Falcon-H1, bounded": ("FalconH1", SSM | dict(mamba_d_ssm=64, time_step_limit=(0.0, 0.1)), f"{STEPS} within 0 and"),
    "RecurrentGemma": ("RecurrentGemma", dict(num_hidden_layers=3, lru_width=32), "keeps its states in its layers"),
}
