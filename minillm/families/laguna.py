"""Llama, except: layers with a window alternate with layers that see everything; they differ in the number of heads and
in the rotation; each head of q and k is normalised; each head's output is multiplied by a softplus gate; after one
dense layer come mixtures whose sigmoid scores get a correction bias for the choice only.

Laguna XS.2, 33B with 3B active, and S 2.1 (Poolside, 2026).
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, Gate, GatedMLP, MoE, Norm, QKNorm

FIXED = {"moe_apply_router_weight_on_input": False, "moe_router_logit_softcapping": 0.0}
THETAS = {"full_attention": 500000.0, "sliding_attention": 10000.0}
ROPE = {kind: {"rope_theta": theta} for kind, theta in THETAS.items()}
ROPE["full_attention"]["partial_rotary_factor"] = 0.5
DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key not in ("mlp_bias", "rope_theta", "rope_scaling")},
    **FIXED,
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_parameters": ROPE,
    "partial_rotary_factor": None,  # stated by kind of layer too, which counts
    "sliding_window": 512,
    "layer_types": None,
    "use_bidirectional_attention": False,
    "gating": True,
    "num_attention_heads_per_layer": None,
    "mlp_layer_types": None,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "moe_routed_scaling_factor": 1.0,
}
WIDTHS: dict[Any, Any] = {True: "head", "per-head": "head", "per-element": "value"}
MIXTURE, FFN = "model.layers.{i}.mlp.", "layers.{i}.ffn."
RULES = {
    **common.DENSE_RULES,
    **common.QK_NORM_RULES,
    **common.MOE_RULES,
    **common.shared_expert(f"{MIXTURE}shared_expert."),
    "model.layers.{i}.self_attn.g_proj.weight": "layers.{i}.attention.gate.weight",
    f"{MIXTURE}experts.e_score_correction_bias": f"{FFN}router.bias",
}
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"mlp.shared_expert.": "mlp.shared_experts."}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    common.causal_only(config)
    config.without_effect(["partial_rotary_factor"])
    gating: Any = config.get("gating")
    if not isinstance(gating, (bool, str)) or gating not in WIDTHS:
        raise ValueError(f"config.json: gating is {shown(gating)}, supported are true, per-head, per-element")
    layers, bias = common.num_layers(config), config.flag("attention_bias")
    windows = common.typed_windows(config, common.window(config), [False] * layers)
    ropes = rotary.by_kind(config, common.heads(config)[2], THETAS)
    norm, gate = QKNorm(Norm(config.number("rms_norm_eps"))), Gate("softplus", WIDTHS[gating])
    mixers = [
        GQA(*heads, ropes["sliding_attention" if window else "full_attention"], window, bias, bias, norm, weakened=gate)
        for heads, window in zip(common.heads_by_layer(config), windows, strict=True)
    ]
    scale = config.number("moe_routed_scaling_factor")
    router = common.router(config, score="sigmoid", renormalize=True, scale=scale, bias=True)
    dense = common.gated_mlp(config, "intermediate_size")
    shared = GatedMLP(config.size("shared_expert_intermediate_size"), dense.activation)
    moe = MoE(router, config.size("moe_intermediate_size"), dense.activation, shared)
    return common.decoder(config, mixers, common.typed_layers(config, moe, dense, [i > 0 for i in range(layers)]))
