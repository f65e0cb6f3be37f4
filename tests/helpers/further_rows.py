"""More rows of `rows.py`: families made of parts that others have, states by channel, and layers that lack a part."""

from __future__ import annotations

from typing import Any

from tests.helpers.sizes import FINE, GROUPS, LONGROPE, YARN

ABSENT = {"intermediate_size": None, "num_key_value_heads": None}
KINDS = ["full_attention", *["sliding_attention"] * 3, "full_attention"]
MIXTURE = {"num_local_experts": 6, "num_experts_per_tok": 3}
FACTORS = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 1.7}
NORTH = {"head_dim": 12, "num_experts": 6, "num_experts_per_tok": 3, "sliding_window": 5, "num_hidden_layers": 5}
STEP = {
    "head_dim": 12,
    "num_hidden_layers": 5,
    "num_sliding_attention_heads": 8,
    "sliding_window": 5,
    "layer_types": KINDS,
    "mlp_layer_types": ["dense", "sparse", "dense", "sparse", "sparse"],
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "share_expert_dim": 28,
    "pad_token_id": 1,
}
# As in `hybrid_rows.py`: a norm on what a head reads from its state would multiply rounding with a smaller number.
CHANNELS = {
    "rms_norm_eps": 1e-2,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "num_key_value_heads": 6,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "num_experts": 8,
    "num_experts_per_token": 3,
    "num_shared_experts": 2,
    "moe_intermediate_size": 20,
}
KIMI = {**CHANNELS, "linear_head_dim": 12, "linear_num_heads": 4}
LING = {
    **CHANNELS,
    **GROUPS,
    "rms_norm_eps": 5e-2,
    "kda_lower_bound": -1.5,
    "num_nextn_predict_layers": 0,
    "head_dim": 12,
    "first_k_dense_replace": 1,
}
FLASH = {
    "rms_norm_eps": 5e-2,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "indexed_attention", "linear_attention", "indexed_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse", "dense"],
    "num_key_value_heads": 6,
    "q_lora_rank": 28,
    "kv_lora_rank": 18,
    "qk_rope_head_dim": 0,
    "qk_nope_head_dim": 10,
    "v_head_dim": 14,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 20,
    "linear_head_dim": 12,
    "linear_num_heads": 4,
    "linear_lower_bound": -1.5,
    "swiglu_limit": 0.6,
    "hc_mult": 3,
    "hc_sinkhorn_iters": 5,
    "index_n_heads": 2,
    "index_head_dim": 12,
    "index_topk": 96,
    "indexer_types": ["full"] * 4,
}
INKLING = {
    **FINE,
    "num_hidden_layers": 4,
    "head_dim": 12,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 5,
    "d_rel": 3,
    "rel_extent": 7,
    "log_scaling_n_floor": 4,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
    "mlp_layer_types": ["dense", "sparse", "sparse", "dense"],
    "route_scale": 1.3,
    "logits_mup_width_multiplier": 1.7,
}
HY4 = {
    "num_key_value_heads": 6,
    "q_lora_rank": 28,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 20,
    "swiglu_limit": 0.6,
    "hc_mult": 3,
    "hc_magnitude": 1.3,
    "hc_eps": 1e-2,
    "index_n_heads": 16,
    "index_head_dim": 12,
    "index_topk": 6,
    "indexer_types": ["full", "shared", "full"],
}
SEEN = {  # towers as small as can be, which stay unused
    "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "image_size": 28, "crop_size": 28},
    "audio_config": {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 2, "num_attention_heads": 2,
                     "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 16},
}  # fmt: skip
WHOLE = {"n_heads_in_group": 3, "no_op": False}
NOTHING = {"no_op": True}
BLOCKS = [
    {"attention": WHOLE, "ffn": {"ffn_mult": 9.0, "no_op": False}},
    {"attention": NOTHING, "ffn": {"ffn_mult": 2.5, "no_op": False}},
    {"attention": {**WHOLE, "n_heads_in_group": 2}, "ffn": NOTHING},
]

DATABRICKS = {**ABSENT, "max_seq_len": 128, "d_model": 48}  # which transformers tells the experts

FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox_japanese": ("gpt_neox_japanese", {**ABSENT, "intermediate_multiple_size": 2}),
    "gpt_neox_japanese-part": (
        "gpt_neox_japanese",
        {**ABSENT, "hidden_act": "relu", "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
    "jais2": ("jais2", {"head_dim": 12}),
    "flex_olmo": ("flex_olmo", {"num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True}),
    "ministral": ("ministral", {"head_dim": 12, "sliding_window": 5, "layer_types": KINDS[:3]}),
    "vaultgemma": ("vaultgemma", {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 5}),
    "granitemoeshared": ("granitemoeshared", {**MIXTURE, **FACTORS, "shared_intermediate_size": 28}),
    "granite_swa": (
        "granite_swa",
        {**FACTORS, "num_hidden_layers": 5, "sliding_window": 5, "layer_rope_theta": [0, 500.0, 500.0, 90.0, 500.0]},
    ),
    "granitemoe_swa": ("granitemoe_swa", {**MIXTURE, **FACTORS, "sliding_window": 5, "shared_intermediate_size": 28}),
    "cohere2_moe": (
        "cohere2_moe",
        {**NORTH, "num_shared_experts": 2, "first_k_dense_replace": 1, "prefix_dense_intermediate_size": 52},
    ),
    "cohere2_moe-sum": (
        "cohere2_moe",
        {
            **NORTH,
            "num_shared_experts": 1,
            "shared_expert_combination_strategy": "sum",
            "expert_selection_fn": "sigmoid",
            "rms_norm_eps": 1e-5,
            "first_k_dense_replace": 2,
            "prefix_dense_sliding_window_pattern": 2,
            "tie_word_embeddings": True,
        },
    ),
    "step3p7": (
        "step3p7",
        {
            **STEP,
            "moe_router_scaling_factor": 2.5,
            "swiglu_limits": [0.0, 0.3, 0.0, 0.0, 0.5],
            "swiglu_limits_shared": [0.2, 0.0, 0.0, 0.4, 0.3],
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
            },
        },
    ),
    "step3p7-plain": (
        "step3p7",
        {**STEP, "attention_bias": True, "mlp_bias": True, "query_pre_attn_scalar": 20},
    ),
    "kimi_linear": ("kimi_linear", KIMI),
    "kimi_linear-latent": (
        "kimi_linear",
        {
            **KIMI,
            **GROUPS,
            "q_lora_rank": 28,
            "linear_conv_kernel_dim": 3,
            "mlp_layer_types": ["sparse", "dense", "sparse", "dense"],
            "routed_scaling_factor": 1.3,
            "moe_renormalize": False,
        },
    ),
    "bailing_hybrid": ("bailing_hybrid", LING),
    "bailing_hybrid-unbounded": (
        "bailing_hybrid",
        {**LING, "kda_safe_gate": False, "short_conv_kernel_size": 2, "rope_parameters": {**YARN, "rope_theta": 500.0}},
    ),
    "glm5_next": ("glm5_next", FLASH),
    "hy_v4": ("hy_v4", HY4),
    "hy_v4-wide": (  # an indexer that leaves all keys
        "hy_v4",
        {**HY4, "index_topk": 96, "attention_bias": True, "n_group": 4, "topk_group": 2, "norm_topk_prob": False,
         "rope_parameters": {**YARN, "rope_theta": 500.0}},
    ),
    "phi4_multimodal": (
        "phi4_multimodal",
        {**SEEN, "rope_parameters": {**{key: value for key, value in LONGROPE.items() if "mscale" not in key},
                                     "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "inkling_text": ("inkling_text", INKLING),
    "inkling_text-odd": (
        "inkling_text",
        {**INKLING, "vocab_size": 101, "unpadded_vocab_size": 97, "layer_types": None, "num_hidden_layers": 6,
         "mlp_layer_types": None, "conv_kernel_size": 3, "n_shared_experts": 1, "log_scaling_n_floor": None},
    ),
    "inkling_mm_model": ("inkling_mm_model", INKLING),
    "nemotron-nas": ("nemotron-nas", {**ABSENT, "block_configs": BLOCKS}),
    "dbrx": (
        "dbrx",
        {
            **DATABRICKS,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.8, "rope_theta": 500.0},
            "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 6, "moe_top_k": 3},
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "dbrx-unscaled": (
        "dbrx",
        {
            **DATABRICKS,
            "attn_config": {"kv_n_heads": 3, "clip_qkv": 2, "rope_theta": 10000.0},
            "ffn_config": {
                "ffn_hidden_size": 28,
                "moe_num_experts": 5,
                "moe_top_k": 2,
                "moe_normalize_expert_weights": None,
                "ffn_act_fn": {"name": "gelu"},
            },
        },
    ),
}  # fmt: skip
