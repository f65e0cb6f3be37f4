"""Llama, except: LayerNorms; attention and MLP run side by side behind one norm; an MLP without a gate; biases in it
and in the head, none in attention; neighbours form the pairs of the rotation, of the first `rotary_dim` values of each
head.

GPT-J-6B, GPT4All-J (Wang and Komatsuzaki, 2021). Its config has other names: n_embd, n_layer, n_head, n_positions.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common
from minillm.spec import GQA, MLP, Decoder, LayerNorm, Rope

THETA = 10000.0
DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 50400,
    "intermediate_size": None,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "hidden_act": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "rotary_dim": 64,
}
LAYER = "transformer.h.{i}."
NAMED = {
    "lm_head": "head",
    "transformer.ln_f": "norm",
    f"{LAYER}ln_1": "layers.{i}.attention_norm",
    f"{LAYER}mlp.fc_in": "layers.{i}.ffn.up",
    f"{LAYER}mlp.fc_out": "layers.{i}.ffn.down",
}
RULES = {
    "transformer.wte.weight": "embedding.weight",
    **{f"{LAYER}attn.{part}_proj.weight": f"layers.{{i}}.attention.qkv.weight[{part}]" for part in "qkv"},
    f"{LAYER}attn.out_proj.weight": "layers.{i}.attention.out.weight",
    f"{LAYER}attn.bias": "DROP",  # computed; early exports stored it
    f"{LAYER}attn.masked_bias": "DROP",
    **common.weights_and_biases(NAMED),
}


def spec(config: Config) -> Decoder:
    num_heads, head_dim = config.size("num_attention_heads"), common.heads(config)[2]
    config.derived("num_key_value_heads", {num_heads})
    turned = config.optional_size("rotary_dim") or head_dim
    if turned > head_dim or turned % 2:
        raise ValueError(f"config.json: rotary_dim is {turned}, expected an even number of a head's {head_dim} values")
    attention = GQA(num_heads, num_heads, head_dim, Rope(turned, THETA, "interleaved"))
    width = config.optional_size("intermediate_size") or 4 * config.size("hidden_size")
    mlp = MLP(width, config.choice("hidden_act", common.ACTIVATIONS), bias=True)
    layers, norm = common.num_layers(config), LayerNorm(config.number("layer_norm_epsilon"))
    made = common.decoder(config, [attention] * layers, [mlp] * layers, norm)
    return replace(common.every_layer(made, ffn_norm=None, parallel=True), head_bias=True)
