"""Llama, except: LayerNorms; an MLP without a gate; biases everywhere but in the head; and where `sliding_window` is a
number every layer looks back over that window only.

StarCoder2 3B, 7B, 15B (Lozhkov et al., arXiv:2402.19173). Small sizes tie the head to the embedding.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, MLP, Decoder, LayerNorm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "sliding_window": None,
    "use_bias": True,
    "tie_word_embeddings": True,
}
LAYER = "model.layers.{i}."
NAMED = {
    "model.norm": "norm",
    f"{LAYER}input_layernorm": "layers.{i}.attention_norm",
    f"{LAYER}post_attention_layernorm": "layers.{i}.ffn_norm",
    f"{LAYER}mlp.c_fc": "layers.{i}.ffn.up",
    f"{LAYER}mlp.c_proj": "layers.{i}.ffn.down",
}
RULES = {**common.without_mlp(common.DENSE_RULES), **common.weights_and_biases(NAMED)}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope, window, bias = rotary.rope(config, head_dim), common.window(config), config.flag("use_bias")
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, window, qkv_bias=bias, out_bias=bias)
    mlp = MLP(config.size("intermediate_size"), config.choice("hidden_act", common.ACTIVATIONS), bias)
    layers, norm = common.num_layers(config), LayerNorm(config.number("norm_epsilon"))
    return common.decoder(config, [attention] * layers, [mlp] * layers, norm)
