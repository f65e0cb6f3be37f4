"""Llama, except: each head of q and k is normalised; after one dense layer all have mixtures as DeepSeek-V3's, without
groups, with a router of other names and a `router_scaling_factor`.

Hy3, 295B (Tencent, 2026). The layer after the last, which predicts further tokens, is left out. With
`enable_moe_fp32_combine` the sums of routed and shared experts are added before they are rounded, which is not done
here: in fp32 it is the same.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, GatedMLP, MoE, Norm, QKNorm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 120832,
    "intermediate_size": 13312,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 11158840.0,
    "num_experts": 192,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "moe_intermediate_size": 1536,
    "router_scaling_factor": 2.826,
    "enable_moe_fp32_combine": True,
    "mlp_layer_types": None,
}
FFN, OURS = "model.layers.{i}.mlp.", "layers.{i}.ffn."
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"mlp.router.gate": "mlp.gate", "mlp.shared_mlp": "mlp.shared_experts"}


def rules(config: Config) -> dict[str, str]:
    return {
        **common.DENSE_RULES,
        **common.QK_NORM_RULES,
        **common.MOE_RULES,
        f"model.layers.{common.num_layers(config)}.*": common.AHEAD,
        f"{FFN}router.gate.weight": f"{OURS}router.weight",
        f"{FFN}expert_bias": f"{OURS}router.bias",
        **{f"{FFN}shared_mlp.{part}_proj.weight": f"{OURS}shared.gate_up.weight[{part}]" for part in ("gate", "up")},
        f"{FFN}shared_mlp.down_proj.weight": f"{OURS}shared.down.weight",
    }


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope, bias = rotary.rope(config, head_dim), config.flag("attention_bias")
    qk_norm = QKNorm(Norm(config.number("rms_norm_eps")))
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias, qk_norm=qk_norm)
    config.flag("enable_moe_fp32_combine")
    if config.flag("mlp_bias"):
        raise ValueError("config.json: mlp_bias is true; no published model of this family has biases there")
    scale = config.number("router_scaling_factor")
    router = common.router(config, score="sigmoid", renormalize=True, scale=scale, bias=True)
    dense, width = common.gated_mlp(config, "intermediate_size"), config.size("moe_intermediate_size")
    shared = GatedMLP(width * config.size("num_shared_experts", 64), dense.activation)
    moe = MoE(router, width, dense.activation, shared)
    ffn = common.typed_layers(config, moe, dense, [i > 0 for i in range(common.num_layers(config))])
    return common.decoder(config, [attention] * len(ffn), ffn)
