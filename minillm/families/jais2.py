"""Llama, except: LayerNorms; an MLP of squared ReLU without a gate; biases everywhere.

Jais 2 8B and 70B (Inception, MBZUAI and Cerebras, 2025).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama, nemotron
from minillm.families.shared import common, rotary
from minillm.spec import GQA, MLP, Decoder, LayerNorm

DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key != "rms_norm_eps"},
    "vocab_size": 150272,
    "hidden_size": 3328,
    "intermediate_size": 26624,
    "num_attention_heads": 26,
    "hidden_act": "relu2",
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "attention_bias": True,
    "mlp_bias": True,
}
RULES = nemotron.RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, layers = config.flag("attention_bias"), common.num_layers(config)
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim), qkv_bias=bias, out_bias=bias)
    activation = config.choice("hidden_act", common.PLAIN_ACTIVATIONS)
    mlp = MLP(config.size("intermediate_size"), activation, config.flag("mlp_bias"))
    return common.decoder(config, [attention] * layers, [mlp] * layers, LayerNorm(config.number("layer_norm_eps")))
