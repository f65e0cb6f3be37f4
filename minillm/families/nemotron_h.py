"""Llama, except: a layer is one part with one norm: Mamba 2, attention without positions, or a feed-forward with
relu(x)² and no gate, which may be a mixture of such experts, also on a latent vector.

Nemotron-H, Nemotron Nano 2, Nemotron 3 and 3.5 (NVIDIA, 2025 and 2026). transformers 5.23 clamps the steps of a prompt
to `time_step_min`, which neither the published models nor its own steps of one token do.
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config
from minillm.families.recurrent import state_space
from minillm.families.shared import common, experts, single
from minillm.spec import GQA, MLP, Decoder, Layer, MoE, Norm, Ungated

KEYS = state_space.Keys("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel",
                        "use_conv_bias", "use_bias")  # fmt: skip
# What nobody reads: attention has no positions, nor biases.
LEFT_OVER = ("expand", "norm_eps", "partial_rotary_factor", "rope_theta", "moe_shared_expert_overlap",
             "num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern",
             "num_hidden_layers")  # fmt: skip
FIXED = {"attention_bias": False, "mlp_bias": False, "mamba_proj_bias": False, "sliding_window": None,
         "n_shared_experts": 1, "mamba_hidden_act": "silu"}  # fmt: skip
MIXTURE: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "moe_latent_size": None,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
}
DEFAULTS: dict[str, Any] = {
    **FIXED,
    **dict(zip(KEYS, (128, 64, 8, 128, 4, True, False), strict=True)),
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "moe", "attention", "mlp"],
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "mlp_hidden_act": "relu2",
    "layer_norm_epsilon": 1e-5,
    "time_step_limit": None,
    **MIXTURE,
    "tie_word_embeddings": False,
}
inner, rules = single.listed, single.rules
TRANSFORMERS = {"backbone": "model"}  # what it calls a module in place of the checkpoint


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(LEFT_OVER)
    config.without_effect(MIXTURE)  # where there is none
    eps, named = config.number("layer_norm_epsilon"), single.kinds(config)
    norm, activation = Norm(eps, cast="after_weight"), config.choice("mlp_hidden_act", common.PLAIN_ACTIVATIONS)
    num_heads, num_kv_heads, head_dim = common.heads(config)
    layers = {
        "mamba": Layer(norm, state_space.mamba(config, Norm(eps), KEYS), None, None),
        "attention": Layer(norm, GQA(num_heads, num_kv_heads, head_dim, None), None, None),
        "mlp": Layer(None, None, norm, MLP(config.size("intermediate_size"), activation)),
    }
    if "moe" in named:
        router = experts.grouped(config, "n_routed_experts")
        shared = MLP(config.size("moe_shared_expert_intermediate_size"), activation)
        width, latent = config.size("moe_intermediate_size"), config.optional_size("moe_latent_size")
        layers["moe"] = Layer(None, None, norm, MoE(router, width, Ungated(activation), shared, latent=latent))
    return Decoder(
        config.size("vocab_size"),
        config.size("hidden_size"),
        tuple(layers[kind] for kind in named),
        norm,
        config.flag("tie_word_embeddings"),
        config.positions("max_position_embeddings"),
    )
