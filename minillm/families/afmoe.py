"""Llama, except: norms before and after attention and MLP; each head of q and k is normalised; three of four layers
have a window and are rotated, the fourth has no positions; the output of the heads is multiplied by a sigmoid gate;
after the first layers come mixtures whose sigmoid scores get a correction bias for the choice only.

Trinity Nano, Mini and Large (Arcee AI, 2025).
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, experts, rotary
from minillm.spec import GQA, Decoder, Embedding, Gate, GatedMLP, MoE, Norm, QKNorm

FIXED = {"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1, "num_expert_groups": 1,
         "num_limited_groups": 1}  # fmt: skip
DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key != "mlp_bias"},
    **FIXED,
    "vocab_size": 200192,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "head_dim": 128,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "sliding_window": 1024,
    "layer_types": None,
    "global_attn_every_n_layers": 4,
    "mup_enabled": False,
    "num_dense_layers": 1,
    "num_experts": 64,
    "num_experts_per_tok": 6,
    "num_shared_experts": 2,
    "moe_intermediate_size": 1408,
    "route_scale": 1.0,
    "load_balance_coeff": None,  # of training
    "use_grouped_mm": None,
}
LAYER = "model.layers.{i}."
RULES = {
    **common.DENSE_RULES,
    **common.QK_NORM_RULES,
    **common.MOE_RULES,
    **experts.SHARED_RULES,
    f"{LAYER}self_attn.gate_proj.weight": "layers.{i}.attention.gate.weight",
    f"{LAYER}post_attention_layernorm.weight": "layers.{i}.post_attention_norm.weight",
    f"{LAYER}pre_mlp_layernorm.weight": "layers.{i}.ffn_norm.weight",
    f"{LAYER}post_mlp_layernorm.weight": "layers.{i}.post_ffn_norm.weight",
    f"{LAYER}mlp.router.gate.weight": "layers.{i}.ffn.router.weight",
    f"{LAYER}mlp.expert_bias": "layers.{i}.ffn.router.bias",
}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(["load_balance_coeff", "use_grouped_mm"])
    layers, norm = common.num_layers(config), Norm(config.number("rms_norm_eps"), cast="after_weight")
    every, first = config.size("global_attn_every_n_layers"), common.first_layers(config, "num_dense_layers")
    windows = common.typed_windows(config, common.window(config), [(i + 1) % every != 0 for i in range(layers)])
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, rope = config.flag("attention_bias"), rotary.rope(config, head_dim)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, None, bias, bias, QKNorm(norm), weakened=Gate())
    scale = config.number("route_scale")
    router = common.router(config, score="sigmoid", renormalize=True, scale=scale, bias=True)
    dense, width = common.gated_mlp(config, "intermediate_size"), config.size("moe_intermediate_size")
    shared = GatedMLP(width * config.size("num_shared_experts", 64), dense.activation)
    moe, ropes = MoE(router, width, dense.activation, shared), [rope if each else None for each in windows]
    ffn = [dense if i < first else moe for i in range(layers)]
    made = common.decoder(config, common.in_layers(attention, windows, ropes), ffn, norm)
    made = common.every_layer(made, post_attention_norm=norm, post_ffn_norm=norm)
    scaled = Embedding(config.size("hidden_size") ** 0.5) if config.flag("mup_enabled") else made.embedding
    return replace(made, embedding=scaled)
