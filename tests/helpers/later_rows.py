"""More rows of `rows.py`: text models inside others, and families of known parts put together anew."""

from __future__ import annotations

from typing import Any

from tests.helpers.sizes import EXPERTS, FINE, LATENT, ROPES, YARN

SECTIONS = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [3, 2, 3]}
PARTIAL = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75}
MIXED = ["sparse", "dense", "sparse"]
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
NEVER = {"bos_token_id": 1000}  # a class that must have one
OTHER_SCALE = {"routed_scaling_factor": 2.5, "norm_topk_prob": False, "n_group": 2, "topk_group": 1}
FALCON = {"ffn_hidden_size": 80, "intermediate_size": None}
ERNIE = {"moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 20, "head_dim": 8}

LATER: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("qwen2_vl", {"rope_parameters": {**SECTIONS, "mrope_section": [2, 1, 1]}}),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 2]},
        },
    ),
    "qwen3_vl": ("qwen3_vl", {"head_dim": 16, "rope_parameters": {**SECTIONS, "mrope_interleaved": True}}),
    "qwen3_vl_moe": ("qwen3_vl_moe", {**EXPERTS, "head_dim": 16, "mlp_only_layers": [1], "attention_bias": True}),
    "kimi_k25": ("kimi_k25", {**LATENT, "n_group": 1, "topk_group": 1}),
    "mistral3": ("mistral3", {"head_dim": 12, "sliding_window": 5}),
    "llava": ("llava", {"head_dim": 12, "sliding_window": 5}),
    "qwen2_audio": ("qwen2_audio", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "glm": ("glm", {"head_dim": 16, "rope_parameters": PARTIAL}),
    "glm4": ("glm4", {"head_dim": 12, "attention_bias": False, "tie_word_embeddings": True}),
    "glm4_moe": ("glm4_moe", {**FINE, "head_dim": 16, "attention_bias": True, "use_qk_norm": True}),
    "glm4_moe-groups": (
        "glm4_moe",
        {
            **FINE,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 2,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": False,
            "rope_parameters": PARTIAL,
        },
    ),
    "glm4_moe_lite": ("glm4_moe_lite", {**LATENT, "n_group": 1, "topk_group": 1}),
    "glm4_moe_lite-mixed": (
        "glm4_moe_lite",
        {
            **LATENT,
            "n_group": 4,
            "topk_group": 2,
            "mlp_layer_types": MIXED,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": False,
            "rope_interleave": False,
            "attention_bias": True,
        },
    ),
    "dots1": ("dots1", {**FINE, "first_k_dense_replace": 1, "norm_topk_prob": True, "head_dim": 12}),
    "dots1-window": (
        "dots1",
        {**FINE, **OTHER_SCALE, "sliding_window": 5, "max_window_layers": 1, "attention_bias": True},
    ),
    "solar_open": ("solar_open", {**FINE, **OTHER_SCALE, "head_dim": 16, "attention_bias": True}),
    "hy_v3": ("hy_v3", {**EXPERTS, "head_dim": 16}),
    "hy_v3-mixed": (
        "hy_v3",
        {
            **EXPERTS,
            "num_shared_experts": 2,
            "router_scaling_factor": 1.5,
            "attention_bias": True,
            "head_dim": 8,
            "mlp_layer_types": MIXED,
        },
    ),
    "minimax_m2": ("minimax_m2", {"num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 16, "rotary_dim": 12}),
    "ernie4_5": ("ernie4_5", {"head_dim": 12, "use_bias": True}),
    "ernie4_5-scaled": ("ernie4_5", {"tie_word_embeddings": False, "rope_parameters": ROPES["linear"]}),
    "ernie4_5_moe": ("ernie4_5_moe", {**ERNIE, "moe_layer_start_index": 2, "tie_word_embeddings": False}),
    "ernie4_5_moe-mixed": (
        "ernie4_5_moe",
        {
            **ERNIE,
            "num_hidden_layers": 5,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 0,
            "moe_layer_end_index": 2,
            "moe_layer_interval": 2,
        },
    ),
    "seed_oss": ("seed_oss", {"head_dim": 12}),
    "seed_oss-biases": (
        "seed_oss",
        {"head_dim": 8, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
    ),
    "starcoder2": ("starcoder2", {"sliding_window": 6}),
    "starcoder2-plain": ("starcoder2", {"use_bias": False, "tie_word_embeddings": False, "norm_epsilon": 1e-2}),
    "stablelm": ("stablelm", {"num_attention_heads": 3, "num_key_value_heads": 3}),
    "stablelm-parallel": (
        "stablelm",
        {"use_qkv_bias": True, "use_parallel_residual": True, "layer_norm_eps": 1e-2, "rope_parameters": PARTIAL},
    ),
    "gptj": ("gptj", {"n_inner": 80, "rotary_dim": 6, "num_key_value_heads": None, "layer_norm_epsilon": 1e-2}),
    "falcon": ("falcon", {**FALCON, "num_key_value_heads": None, "layer_norm_epsilon": 1e-2}),
    "falcon-untied": (
        "falcon",
        {
            "ffn_hidden_size": 72,
            "intermediate_size": None,
            "tie_word_embeddings": False,
            "rope_parameters": ROPES["linear"],
        },
    ),
    "falcon-groups": (
        "falcon",
        {**FALCON, "num_key_value_heads": None, "new_decoder_architecture": True, "num_kv_heads": 3},
    ),
    "falcon-one norm": (
        "falcon",
        {
            **FALCON,
            "num_key_value_heads": None,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
        },
    ),
    "mellum": ("mellum", {**EXPERTS, "head_dim": 16, "sliding_window": 5, "layer_types": WINDOWS}),
    "mellum-mixed": (
        "mellum",
        {**EXPERTS, "head_dim": 12, "attention_bias": True, "norm_topk_prob": False, "mlp_layer_types": MIXED},
    ),
    "exaone4": (
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 3, "tie_word_embeddings": True},
    ),
    "internlm3": ("internlm3", {"head_dim": 12}),
    "internlm3-biases": ("internlm3", {"head_dim": 8, "attention_bias": True, "mlp_bias": True}),
    "cwm": ("cwm", {**NEVER, "head_dim": 12, "sliding_window": 5, "num_hidden_layers": 5}),
    "cwm-types": (
        "cwm",
        {
            **NEVER,
            "head_dim": 8,
            "sliding_window": 7,
            "mlp_bias": True,
            "layer_types": WINDOWS,
            "rope_parameters": YARN,
        },
    ),
    "helium": ("helium", {"head_dim": 8}),
    "helium-biases": ("helium", {"head_dim": 8, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "youtu": ("youtu", {**{key: LATENT[key] for key in LATENT if key.endswith(("_rank", "_dim", "_heads"))}}),
    "youtu-half": (
        "youtu",
        {
            "num_key_value_heads": 6,
            "q_lora_rank": None,
            "kv_lora_rank": 18,
            "qk_nope_head_dim": 10,
            "qk_rope_head_dim": 8,
            "v_head_dim": 14,
            "rope_interleave": False,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "exaone": ("exaone", {"rope_parameters": {**ROPES["llama3"], "rope_theta": 500.0}}),
    "exaone-tied": ("exaone", {"head_dim": 12, "tie_word_embeddings": True}),
    "qwen": (
        "qwen",
        {
            "num_key_value_heads": 6,
            "rms_norm_eps": 1e-2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "chatglm": ("chatglm", {"head_dim": 12}),
    "chatglm-ratio": (
        "chatglm",
        {
            "head_dim": 8,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "mimo": ("mimo", {"rope_parameters": {"rope_type": "default", "rope_theta": 640000.0}}),
    "internlm2": ("internlm2", {"attention_bias": True}),
    "internlm2-plain": (
        "internlm2",
        {"num_key_value_heads": 3, "rope_parameters": {**ROPES["dynamic"], "rope_theta": 500.0}},
    ),
    "baichuan": ("baichuan", {"num_key_value_heads": 6, "head_dim": 8}),
    "baichuan-13b": ("baichuan", {"num_key_value_heads": 6, "head_dim": 8, "falls": True}),
}
