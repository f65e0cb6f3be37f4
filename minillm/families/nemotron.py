"""Llama, except: LayerNorms whose weights lie around zero; half of each head turns; an MLP without a gate, whose
activation is a squared ReLU.

Nemotron-4 15B and 340B, Minitron 4B and 8B, Nemotron-Mini-4B (NVIDIA, arXiv:2402.16819; arXiv:2407.14679).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import arcee, llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, MLP, Decoder, LayerNorm

DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key != "rms_norm_eps"},
    "vocab_size": 256000,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_attention_heads": 48,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "rope_percent": None,  # of the first files, beside the one above
    "kv_channels": None,
}
NAMED = {
    "model.norm": "norm",
    "model.layers.{i}.input_layernorm": "layers.{i}.attention_norm",
    "model.layers.{i}.post_attention_layernorm": "layers.{i}.ffn_norm",
}
RULES = {**arcee.RULES, **common.weights_and_biases(NAMED)}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    part = config.get("partial_rotary_factor")
    for key, wanted in (("rope_percent", part), ("kv_channels", head_dim)):
        common.only(config, {key: wanted}) if config.get(key) is not None else None
    bias, rope = config.flag("attention_bias"), rotary.rope(config, head_dim, partial=part)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias)
    activation = config.choice("hidden_act", common.PLAIN_ACTIVATIONS)
    mlp = MLP(config.size("intermediate_size"), activation, config.flag("mlp_bias"))
    layers, norm = common.num_layers(config), LayerNorm(config.number("norm_eps"), offset=1.0)
    return common.decoder(config, [attention] * layers, [mlp] * layers, norm)
