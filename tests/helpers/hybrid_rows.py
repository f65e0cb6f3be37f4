"""More rows of `rows.py`: recurrent layers beside attention. Sizes differ from each other."""

from __future__ import annotations

from typing import Any

LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 14,
    "linear_conv_kernel_dim": 4,
}
# The norm on what a head reads from its state divides by next to nothing where a query is orthogonal to all keys, and
# so multiplies rounding: with 1e-6 as published both sides are up to 6e-5 away from fp64.
DELTA = {**LINEAR, "rms_norm_eps": 1e-2, "full_attention_interval": 2, "head_dim": 16}
MIDDLE = ["linear_attention", "full_attention", "linear_attention"]
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}

# Widths of feed-forwards as if most of Llama's were asked for.
CONV = {"intermediate_size": 120, "block_multiple_of": 16, "layer_types": ["conv", "full_attention", "conv"]}
MIXED = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "num_hidden_layers": 4}

HYBRID: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("qwen3_next", {**DELTA, **EXPERTS}),
    "qwen3_next-odd": (
        "qwen3_next",
        {
            **DELTA,
            **EXPERTS,
            "attention_bias": True,
            "linear_num_value_heads": 2,
            "linear_conv_kernel_dim": 3,
            "decoder_sparse_step": 2,
            "norm_topk_prob": False,
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "linear_attention"] * 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75},
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_5_text": ("qwen3_5_text", {**DELTA, "tie_word_embeddings": True}),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", {**DELTA, **EXPERTS, "linear_num_value_heads": 4}),
    "olmo_hybrid": ("olmo_hybrid", {**LINEAR, "layer_types": MIDDLE, "rope_parameters": {"rope_theta": None}}),
    "olmo_hybrid-turned": (
        "olmo_hybrid",
        {
            **LINEAR,
            "linear_allow_neg_eigval": False,
            "linear_num_key_heads": 3,
            "linear_conv_kernel_dim": 2,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "lfm2": ("lfm2", CONV),
    "lfm2_moe": (
        "lfm2_moe",
        {**MIXED, "layer_types": ["conv", "full_attention", "conv", "conv"], "num_dense_layers": 1},
    ),
    "lfm3": (
        "lfm3",
        {
            "head_dim": 12,
            "num_hidden_layers": 5,
            "sliding_window": 5,
            "layer_types": ["conv", "full_attention", "sliding_attention", "conv", "full_attention"],
        },
    ),
    "lfm3-odd": (
        "lfm3",
        {
            "head_dim": 8,
            "conv_L_cache": 3,
            "layer_types": ["sliding_attention", "conv", "full_attention"],
            "sliding_window": 9,
            "use_sandwich_norm": False,
            "use_attention_gate": False,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "lfm2_moe-odd": (
        "lfm2_moe",
        {
            **MIXED,
            "layer_types": ["conv", "full_attention"] * 2,
            "num_dense_layers": 0,
            "conv_L_cache": 2,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.7,
            "tie_word_embeddings": False,
        },
    ),
    "lfm2-odd": (
        "lfm2",
        {
            "block_ffn_dim_multiplier": 0.7,
            "block_multiple_of": 3,
            "conv_L_cache": 4,
            "full_attn_idxs": [2, 3],
            "num_hidden_layers": 5,
            "norm_eps": 1e-3,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
}
