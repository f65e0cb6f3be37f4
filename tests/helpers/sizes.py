"""Tiny sizes that differ from each other, and the rotary scalings, of which the rows are made."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 32},
    "yarn": YARN,
    "yarn all": {
        **YARN,
        "original_max_position_embeddings": 64,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "truncate": False,
        "attention_factor": 0.9,
    },
    "yarn mscale": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.3},
}

# Sizes of experts and latents, each different from the others.
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
FINE = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "n_shared_experts": 2}
LATENT = {
    **FINE,
    "num_key_value_heads": 6,
    "q_lora_rank": 28,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 4, "topk_group": 2}
LATENT_YARN = {**YARN, "rope_theta": 500.0, "mscale": 0.707, "mscale_all_dim": 1.1}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.3, 1.7, 2.0],
    "long_factor": [1.5, 2.5, 4.0, 7.0],
    "short_mscale": 1.1,
    "long_mscale": 1.3,
    "factor": 2.0,
    "original_max_position_embeddings": 72,
}

PLAMO3 = {"head_dim": 12}
OSS = {"num_local_experts": 5, "num_experts_per_tok": 3, "head_dim": 12}
CAPPED = {"head_dim": 12, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
GEMMA3 = {"head_dim": 12, "query_pre_attn_scalar": 20, "num_hidden_layers": 7}
PHI3_LONG = {"original_max_position_embeddings": 24, "max_position_embeddings": 96}
PHI3_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.4, 1.6],
    "long_factor": [1.5, 2.5, 4.0, 7.0],
}
