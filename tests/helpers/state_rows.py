"""More rows of `rows.py`: state spaces alone, between attention and beside it. Sizes differ from each other."""

from __future__ import annotations

from typing import Any

# transformers keeps the steps of a prompt above time_step_min in nemotron_h, and those of single tokens not.
NEMOTRON = {
    "mamba_num_heads": 6,
    "mamba_head_dim": 10,
    "n_groups": 2,
    "ssm_state_size": 12,
    "head_dim": 16,
    "num_key_value_heads": 3,
    "time_step_min": 1e-9,
    "layer_norm_epsilon": 1e-3,
}
MIXED = {
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 28,
}
MAMBA = {
    "mamba_expand": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 12,
    "mamba_n_groups": 2,
    "mamba_d_state": 10,
    "rms_norm_eps": 1e-3,
}
GRANITE = {
    **MAMBA,
    "shared_intermediate_size": 28,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 1.5,
}
FALCON = {
    "mamba_d_ssm": 40,
    "mamba_n_heads": 5,
    "mamba_d_head": 8,
    "mamba_d_state": 12,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.5,
    "key_multiplier": 0.5,
    "attention_in_multiplier": 1.1,
    "attention_out_multiplier": 0.9,
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.7,
    "ssm_multipliers": [0.6, 1.4, 0.7, 1.3, 0.8],
    "mlp_multipliers": [0.8, 1.6],
    "projectors_bias": False,
}

JAMBA = {"mamba_d_state": 7, "mamba_d_conv": 3, "rms_norm_eps": 1e-3}
ZAMBA = {
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    "num_key_value_heads": 6,
    "n_mamba_heads": 8,
    "mamba_ngroups": 2,
    "mamba_d_state": 4,
    "adapter_rank": 5,
    "time_step_min": 1e-9,
    "rms_norm_eps": 1e-1,
    "tie_word_embeddings": True,
}

STATE: dict[str, tuple[str, dict[str, Any]]] = {
    "nemotron_h": (
        "nemotron_h",
        {**NEMOTRON, "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]},
    ),
    "nemotron_h-latent": (
        "nemotron_h",
        {
            **NEMOTRON,
            **MIXED,
            "layers_block_type": ["moe", "linear_attention", "full_attention", "linear_attention", "mlp"],
            "moe_latent_size": 14,
            "use_bias": True,
            "use_conv_bias": False,
            "n_groups": 3,
            "routed_scaling_factor": 2.5,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **GRANITE,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
        },
    ),
    "granitemoehybrid-dense": (
        "granitemoehybrid",
        {
            **GRANITE,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "num_local_experts": 0,
            "mamba_n_groups": 1,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "mamba_d_conv": 2,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
        },
    ),
    "bamba": ("bamba", {**MAMBA, "attn_layer_indices": [1], "mlp_bias": True, "head_dim": 8}),
    "falcon_h1": ("falcon_h1", {**FALCON, "num_hidden_layers": 2}),
    "falcon_h1-norm": (
        "falcon_h1",
        {
            **FALCON,
            "num_hidden_layers": 2,
            "mamba_n_heads": 4,
            "mamba_d_head": 10,
            "mamba_n_groups": 2,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mamba_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "mamba": (
        "mamba",
        {
            "state_size": 7,
            "time_step_rank": 5,
            "conv_kernel": 3,
            "use_bias": True,
            "layer_norm_epsilon": 1e-3,
            "intermediate_size": 96,
        },
    ),
    "falcon_mamba": (
        "falcon_mamba",
        {"state_size": 10, "mixer_rms_eps": 1e-2, "use_conv_bias": False, "tie_word_embeddings": False},
    ),
    "jamba": (
        "jamba",
        {
            **JAMBA,
            "num_hidden_layers": 4,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "num_experts": 5,
            "num_experts_per_tok": 3,
        },
    ),
    "jamba-dense": (
        "jamba",
        {
            **JAMBA,
            "attn_layer_period": 2,
            "attn_layer_offset": 0,
            "num_experts": 1,
            "mamba_expand": 3,
            "mamba_dt_rank": 5,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "zamba2": ("zamba2", {**ZAMBA, "use_shared_attention_adapter": True, "use_mem_rope": True}),
    "zamba2-two blocks": (
        "zamba2",
        {
            **ZAMBA,
            "layers_block_type": ["hybrid", "hybrid", "linear_attention", "hybrid"],
            "num_hidden_layers": 4,
            "num_mem_blocks": 2,
            "mamba_ngroups": 1,
            "rms_norm_eps": 0.5,
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            "num_hidden_layers": 4,
            "block_types": ["recurrent", "attention"],
            "attention_window_size": 9,
            "logits_soft_cap": 3.0,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
        },
    ),
    "mamba2": (
        "mamba2",
        {"num_heads": 6, "head_dim": 16, "n_groups": 3, "state_size": 10, "conv_kernel": 3, "layer_norm_epsilon": 1e-3},
    ),
}
