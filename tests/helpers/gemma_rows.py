"""Rows of families whose layers share keys and values and have embeddings of their own."""

from __future__ import annotations

from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
TURNED = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 700.0},
    SLIDING: {"rope_type": "default", "rope_theta": 100.0},
}
GEMMA4 = {
    "head_dim": 8,
    "global_head_dim": 12,
    "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "sliding_window": 6,
    "rope_parameters": TURNED,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 97,
    "tie_word_embeddings": True,
}
SMALL = {**GEMMA4, "hidden_size_per_layer_input": 10, "final_logit_softcapping": 3.0, "rms_norm_eps": 1e-3}
SPARSE = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 3, "moe_intermediate_size": 20}
STREAMS = {
    "head_dim": 8,
    "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "sliding_window": 6,
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": base} for kind, base in ((FULL, 700.0), (SLIDING, 100.0))
    },
    "hidden_size_per_layer_input": 10,
    "vocab_size_per_layer_input": 97,
    "num_kv_shared_layers": 2,
    "laurel_rank": 6,
    "activation_sparsity_pattern": [0.6, 0.0, 0.9, 0.0],
    "final_logit_softcapping": 3.0,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": True,
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3n": ("gemma3n_text", STREAMS),
    "gemma3n-apart": (
        "gemma3n_text",
        {
            **STREAMS,
            "num_hidden_layers": 5,
            "layer_types": None,
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 3,
            "intermediate_size": [40, 64, 48, 64, 40],
            "activation_sparsity_pattern": None,
            "vocab_size_per_layer_input": 90,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4": ("gemma4_text", {**SMALL, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}),
    "gemma4-apart": (
        "gemma4_text",
        {
            **SMALL,
            "num_hidden_layers": 5,
            "layer_types": [FULL, SLIDING, SLIDING, SLIDING, FULL],
            "num_kv_shared_layers": 3,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4-keys": (
        "gemma4_text",
        {**GEMMA4, "num_hidden_layers": 3, "layer_types": None, "attention_k_eq_v": True, "num_key_value_heads": 6},
    ),
    "gemma4-experts": (
        "gemma4_text",
        {
            **GEMMA4,
            **SPARSE,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "num_hidden_layers": 2,
            "layer_types": [SLIDING, FULL],
        },
    ),
    "gemma4-unified": (
        "gemma4_unified_text",
        {
            **{key: value for key, value in GEMMA4.items() if "per_layer" not in key},
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 3,
            "num_kv_shared_layers": 1,
            "final_logit_softcapping": 5.0,
        },
    ),
}
