"""More rows of `rows.py`: families whose attention has a gate, shapes of its own in each layer, or sees chunks, and
smaller ones."""

from __future__ import annotations

from typing import Any

from tests.helpers.sizes import EXPERTS, GROUPS, LATENT, LATENT_YARN, LLAMA3, LONGROPE, YARN

TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
LAGUNA = {**EXPERTS, "head_dim": 12, "shared_expert_intermediate_size": 28, "sliding_window": 5, "layer_types": TYPES}
TURNS = {
    "full_attention": {**YARN, "rope_theta": 500.0, "partial_rotary_factor": 0.5, "attention_factor": 1.2},
    "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
}
AFMOE = {**EXPERTS, "head_dim": 12, "num_hidden_layers": 5, "sliding_window": 5}
MUSE = {"head_dim": 12, "num_hidden_layers": 5, "sliding_window": 5, "tie_word_embeddings": False}
WARM = {
    "rope_parameters": {**YARN, "rope_theta": 500.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
}
CHUNKS = {
    "head_dim": 12,
    "num_local_experts": 5,
    "intermediate_size_mlp": 52,
    "attention_chunk_size": 7,
    "floor_scale": 6,
    "attn_scale": 0.3,
}
SCOUT = {**LLAMA3, "rope_theta": 500.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 32}
MIMO = {
    "num_attention_heads": 8,
    "head_dim": 12,
    "v_head_dim": 10,
    "sliding_window": 5,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
}
MINIMAX = {
    "head_dim": 12,
    "rotary_dim": 6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "intermediate_size": 20,
    "dense_intermediate_size": 52,
    "shared_intermediate_size": 28,
    "index_n_heads": 2,
    "index_head_dim": 12,
}
# Far fewer keys than positions, and so many heads that a key to which none says anything, a tie at 0, is not met.
INDEXED = {"index_n_heads": 16, "index_head_dim": 12, "index_topk": 6}
GROWING = {
    "head_dim": 12,
    "num_query_heads": [2, 6, 4],
    "num_kv_heads": [1, 3, 2],
    "ffn_multipliers": [0.5, 1.1, 2.0],
    "ffn_dim_divisor": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
PLAIN_SCORES = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 8**-0.5,
    "residual_multiplier": 0.4,
    "logits_scaling": 1.7,
}
LONG = {key: value for key, value in LONGROPE.items() if "mscale" not in key}
CPM3 = {
    "num_key_value_heads": 6,
    "q_lora_rank": 28,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
}

TAIL: dict[str, tuple[str, dict[str, Any]]] = {
    "laguna": (
        "laguna",
        {
            **LAGUNA,
            "num_attention_heads_per_layer": [6, 4, 8],
            "rope_parameters": TURNS,
            "moe_routed_scaling_factor": 2.5,
        },
    ),
    "laguna-elements": ("laguna", {**LAGUNA, "gating": "per-element", "attention_bias": True}),
    "afmoe": ("afmoe", {**AFMOE, "mup_enabled": True, "route_scale": 1.7}),
    "afmoe-dense": (
        "afmoe",
        {**AFMOE, "num_dense_layers": 3, "rope_parameters": {**YARN, "rope_theta": 500.0}},
    ),
    "muse_glimmer": ("muse_glimmer", MUSE),
    "muse_glimmer-turns": (
        "muse_glimmer",
        {**MUSE, "layer_rope_theta": [1, 0, 0, 1, 1], "qk_scale_factor": 1.3},
    ),
    "mistral4": ("mistral4", {**LATENT, **WARM}),
    "mistral4-groups": (
        "mistral4",
        {**LATENT, **WARM, **GROUPS, "q_lora_rank": None, "norm_topk_prob": False, "routed_scaling_factor": 1.7},
    ),
    "mistral3-mistral4": ("mistral3", {"model_type": "mistral4", **LATENT, **WARM}),
    "nemotron": ("nemotron", {"norm_eps": 1e-2, "rms_norm_eps": None}),
    "nemotron-biases": ("nemotron", {"head_dim": 12, "attention_bias": True, "mlp_bias": True}),
    "stablelm-norms": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "llama4": ("llama4_text", {**CHUNKS, "num_hidden_layers": 5, "rope_parameters": SCOUT}),
    "llama4-dense": (
        "llama4_text",
        {
            **CHUNKS,
            "use_qk_norm": False,
            "interleave_moe_layer_step": 2,
            "num_experts_per_tok": 2,
            "attention_bias": True,
        },
    ),
    "mimo_v2_flash": ("mimo_v2_flash", {**MIMO, "rope_parameters": TURNS, "attention_bias": True}),
    "mimo_v2_flash-groups": (
        "mimo_v2_flash",
        {
            **MIMO,
            **GROUPS,
            "n_routed_experts": 8,
            "routed_scaling_factor": 1.7,
            "attention_value_scale": None,
            "layer_types": TYPES,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
        },
    ),
    "minimax_m3": ("minimax_m3_vl", {**MINIMAX, "num_hidden_layers": 4, "mlp_layer_types": ["dense", *["sparse"] * 3]}),
    "minimax_m3-indexed": (
        "minimax_m3_vl",
        {
            **MINIMAX,
            "layer_types": ["full_attention", *["minimax_m3_sparse"] * 2],
            "index_block_size": 3,
            "index_topk_blocks": 3,
            "swiglu_limit": 0.6,
        },
    ),
    "deepseek_v32": ("deepseek_v32", {**LATENT, **GROUPS, **INDEXED, "rope_parameters": LATENT_YARN}),
    "deepseek_v32-mixed": (
        "deepseek_v32",
        {
            **LATENT,
            **INDEXED,
            "n_group": 1,
            "topk_group": 1,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "routed_scaling_factor": 1.7,
            "norm_topk_prob": False,
            "attention_bias": True,
        },
    ),
    "glm_moe_dsa": ("glm_moe_dsa", {**LATENT, **INDEXED, "indexer_types": ["full", "shared", "full"]}),
    "exaone4_5": ("exaone4_5", {"num_hidden_layers": 5, "sliding_window": 5, "head_dim": 12}),
    "openelm": ("openelm", {**GROWING, "tie_word_embeddings": True}),
    "openelm-untied": ("openelm", {**GROWING, "head_dim": 10, "ffn_dim_divisor": 7}),
    "minicpm": ("minicpm", PLAIN_SCORES),
    "minicpm-longrope": ("minicpm", {**PLAIN_SCORES, "tie_word_embeddings": True, "rope_parameters": LONG}),
    "minicpm3": ("minicpm3", {**CPM3, "scale_emb": 3, "scale_depth": 0.7, "dim_model_base": 20}),
    "minicpm3-longrope": ("minicpm3", {**CPM3, "rope_parameters": LONG, "v_head_dim": 14, "q_lora_rank": None}),
}
