"""Every family with what sets it apart, in tiny configurations."""

from __future__ import annotations

from typing import Any

from tests.helpers import compressed_cases, gemma_rows
from tests.helpers.further_rows import FURTHER
from tests.helpers.hybrid_rows import HYBRID
from tests.helpers.later_rows import LATER
from tests.helpers.placed_rows import PLACED
from tests.helpers.sizes import BASE as BASE
from tests.helpers.sizes import (
    CAPPED,
    EXPERTS,
    FINE,
    GEMMA3,
    GROUPS,
    LATENT,
    LATENT_YARN,
    LONGROPE,
    OSS,
    PHI3_LONG,
    PHI3_ROPE,
    PLAMO3,
    ROPES,
    YARN,
)
from tests.helpers.state_rows import STATE
from tests.helpers.tail_rows import TAIL

# Every family with what sets it apart, by a name for the test's report.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 6}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 20, "tie_word_embeddings": True}),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "llama-gelu-tanh": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    **{f"llama-{name}": ("llama", {"rope_parameters": {**rope, "rope_theta": 500.0}}) for name, rope in ROPES.items()},
    "llama-dynamic-beyond": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0}, "max_position_embeddings": 24},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-head-dim": ("mistral", {"sliding_window": 7, "head_dim": 12}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-bias": ("qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-window": (
        "qwen3",
        {"head_dim": 10, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "gpt_oss": ("gpt_oss", {**OSS, "sliding_window": 6}),
    "gpt_oss-odd": (
        "gpt_oss",
        {
            **OSS,
            "sliding_window": 9,
            "num_experts_per_tok": 2,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "attention_bias": False,
            "swiglu_limit": 0.6,
            "swiglu_alpha": 1.3,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "plamo": ("plamo", {"n_shared_head": 3}),
    "plamo-one": ("plamo", {"n_shared_head": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "plamo3": ("plamo3", {**PLAMO3, "sliding_window": 6}),
    "plamo3-yarn": (
        "plamo3",
        {
            **PLAMO3,
            "sliding_window": 9,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 900.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5}),
    "mixtral-window": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 5, "head_dim": 12, "hidden_act": "gelu"},
    ),
    "tanuki": ("tanuki", {"num_local_experts": 5}),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 36}),
    "qwen2_moe-dense layers": (
        "qwen2_moe",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 24,
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 3,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3_moe-window": (
        "qwen3_moe",
        {
            **EXPERTS,
            "head_dim": 10,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "mlp_only_layers": [1],
            "tie_word_embeddings": True,
        },
    ),
    "olmoe": ("olmoe", {"num_experts": 6, "num_experts_per_tok": 3}),
    "olmoe-clip": ("olmoe", {"num_experts": 6, "num_experts_per_tok": 2, "clip_qkv": 0.8, "norm_topk_prob": True}),
    "phimoe": ("phimoe", {"num_local_experts": 5, "attention_bias": True, "lm_head_bias": True}),
    "phimoe-long": (
        "phimoe",
        {"num_local_experts": 4, "router_jitter_noise": 0.2, "rope_parameters": LONGROPE, "sliding_window": 9},
    ),
    "deepseek": ("deepseek", {**FINE, "first_k_dense_replace": 1, "norm_topk_prob": False}),
    "deepseek-renormalised": ("deepseek", {**FINE, "first_k_dense_replace": 0, "norm_topk_prob": True}),
    "deepseek_v2-lite": ("deepseek_v2", {**LATENT, "q_lora_rank": None, "attention_bias": True}),
    "deepseek_v2": (
        "deepseek_v2",
        {
            **LATENT,
            **GROUPS,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 3.0,
            "rope_parameters": LATENT_YARN,
        },
    ),
    "deepseek_v3": ("deepseek_v3", {**LATENT, **GROUPS, "rope_parameters": LATENT_YARN}),
    "deepseek_v3-half": (
        "deepseek_v3",
        {
            **LATENT,
            "n_group": 2,
            "topk_group": 1,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "q_lora_rank": None,
        },
    ),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma-legacy": ("gemma", {"head_dim": 20, "hidden_act": "gelu", "attention_bias": True, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {**CAPPED, "sliding_window": 6, "num_hidden_layers": 4}),
    "gemma2-open": (
        "gemma2",
        {**CAPPED, "sliding_window": 30, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": ("gemma3_text", {**GEMMA3, "sliding_window": 6}),
    "gemma3-scaled": (
        "gemma3_text",
        {
            **GEMMA3,
            "sliding_window": 9,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "phi": ("phi", {"num_key_value_heads": 6}),
    "phi-norms": (
        "phi",
        {
            "qk_layernorm": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75},
        },
    ),
    "phi3": ("phi3", {"sliding_window": 7}),
    "phi3-long": ("phi3", {**PHI3_LONG, "rope_parameters": {**PHI3_ROPE, "partial_rotary_factor": 1.0}}),
    "phi3-partial": (
        "phi3",
        {
            **PHI3_LONG,
            "tie_word_embeddings": True,
            "rope_parameters": {
                **PHI3_ROPE,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.4],
                "long_factor": [1.5, 2.5, 4.0],
            },
        },
    ),
    "olmo": ("olmo", {}),
    "olmo-clip": ("olmo", {"clip_qkv": 0.8, "attention_bias": True, "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {}),
    "olmo2-yarn": ("olmo2", {"attention_bias": True, "rope_parameters": {**YARN, "rope_theta": 500.0}}),
    "olmo3": ("olmo3", {"num_hidden_layers": 5, "sliding_window": 6}),
    "olmo3-yarn": (
        "olmo3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 9,
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 900.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 900.0},
            },
        },
    ),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-serial": (
        "gpt_neox",
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
    ),
    "kimi_k2": ("kimi_k2", {**LATENT, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827}),
    **LATER,
    **HYBRID,
    **STATE,
    **gemma_rows.ROWS,
    **PLACED,
    **TAIL,
    **FURTHER,
    **compressed_cases.ROWS,
}
