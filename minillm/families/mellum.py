"""Llama, except: all that Qwen3-MoE changes; `layer_types` says which layers have a window, these have a rotary
embedding of their own, and `mlp_layer_types` which ones have a mixture.

Mellum2-12B-A2.5B (JetBrains, 2026). What predicts further tokens is left out.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama, qwen3_moe
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, MoE, Norm, QKNorm

LOCAL_THETA = 10000.0
DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 98304,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "sliding_window": 1024,
    "layer_types": None,
    "mlp_layer_types": None,
    "moe_intermediate_size": 896,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": None,
    "mtp_layer_types": None,
    "mtp_mlp_layer_types": None,
}
RULES = {**qwen3_moe.RULES, "mtp.*": common.AHEAD}


def spec(config: Config) -> Decoder:
    for key in ("num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types"):
        config.get(key)
    num_heads, num_kv_heads, head_dim = common.heads(config)
    layers, bias = common.num_layers(config), config.flag("attention_bias")
    windows = common.typed_windows(config, common.window(config), [False] * layers)
    ropes = rotary.by_window(config, head_dim, windows, LOCAL_THETA)
    qk_norm = QKNorm(Norm(config.number("rms_norm_eps")))
    attention = GQA(num_heads, num_kv_heads, head_dim, ropes[0], qkv_bias=bias, out_bias=bias, qk_norm=qk_norm)
    dense = common.gated_mlp(config, "intermediate_size")
    router = common.router(config, renormalize=config.flag("norm_topk_prob"))
    moe = MoE(router, config.size("moe_intermediate_size"), dense.activation)
    ffn = common.typed_layers(config, moe, dense, [True] * layers)
    return common.decoder(config, common.in_layers(attention, windows, ropes), ffn)
