"""Llama, except: an MLP without a gate, whose activation, xIELU, has two learned numbers; each head of q and k is
normalised; the norms have other names.

Apertus 8B, 70B (Swiss AI, arXiv:2509.14233).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, MLP, XIELU, Decoder, Norm, QKNorm

FIXED = {"hidden_act": "xielu"}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12000000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key != "mlp_bias"},
    **FIXED,
    "vocab_size": 131072,
    "intermediate_size": 14336,
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "rope_theta": 12000000.0,
    "rope_parameters": ROPE,
    "qk_norm": True,
    "post_norm": False,
}
LAYER, FFN = "model.layers.{i}.", "layers.{i}.ffn."
RULES = {
    **common.without_mlp(common.DENSE_RULES),
    **common.QK_NORM_RULES,
    f"{LAYER}attention_layernorm.weight": "layers.{i}.attention_norm.weight",
    f"{LAYER}feedforward_layernorm.weight": "layers.{i}.ffn_norm.weight",
    f"{LAYER}mlp.up_proj.weight": f"{FFN}up.weight",
    f"{LAYER}mlp.down_proj.weight": f"{FFN}down.weight",
    f"{LAYER}mlp.act_fn.alpha_p": f"{FFN}above",
    f"{LAYER}mlp.act_fn.alpha_n": f"{FFN}below",
    f"{LAYER}mlp.act_fn.beta": "DROP if 0.5",
    f"{LAYER}mlp.act_fn.eps": "DROP if -1e-06",
}


def spec(config: Config) -> Decoder:
    common.only(config, {**FIXED, "qk_norm": True, "post_norm": False})
    num_heads, num_kv_heads, head_dim = common.heads(config)
    norm, bias = Norm(config.number("rms_norm_eps")), config.flag("attention_bias")
    rope = rotary.rope(config, head_dim)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias, qk_norm=QKNorm(norm))
    mlp, layers = MLP(config.size("intermediate_size"), XIELU()), common.num_layers(config)
    return common.decoder(config, [attention] * layers, [mlp] * layers, norm)
