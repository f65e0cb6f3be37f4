"""Llama, except: an MLP of squared ReLU without a gate.

AFM-4.5B (Arcee AI, 2025).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, MLP, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "hidden_size": 2560,
    "intermediate_size": 18432,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "relu2",
}
NAMED = {f"model.layers.{{i}}.mlp.{part}_proj": f"layers.{{i}}.ffn.{part}" for part in ("up", "down")}
RULES = {**common.without_mlp(common.DENSE_RULES), **common.weights_and_biases(NAMED)}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, layers = config.flag("attention_bias"), common.num_layers(config)
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim), qkv_bias=bias, out_bias=bias)
    activation = config.choice("hidden_act", common.PLAIN_ACTIVATIONS)
    mlp = MLP(config.size("intermediate_size"), activation, config.flag("mlp_bias"))
    return common.decoder(config, [attention] * layers, [mlp] * layers)
