"""More rows of `rows.py`: recurrent layers beside attention. Sizes differ from each other."""

from __future__ import annotations

from typing import Any

DELTA = {
    "num_hidden_layers": 5,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 14,
    "linear_conv_kernel_dim": 4,
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}

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
            "layer_types": ["full_attention", "linear_attention"] * 2 + ["linear_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75},
            "tie_word_embeddings": True,
        },
    ),
}
