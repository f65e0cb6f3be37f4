"""Llama, except: LayerNorms; attention and MLP run side by side behind one norm; an MLP without a gate; biases
everywhere; only part of each head turns.

Phi-1, Phi-1.5, Phi-2 (arXiv:2306.11644, arXiv:2309.05463).
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, MLP, Decoder, LayerNorm, QKNorm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
}
LAYER = "model.layers.{i}."
ATTENTION = {
    f"{LAYER}self_attn.{part}_proj.{kind}": f"layers.{{i}}.attention.qkv.{kind}[{part}]"
    for part in "qkv"
    for kind in ("weight", "bias")
}
NAMED = {
    "lm_head": "head",
    "model.final_layernorm": "norm",
    f"{LAYER}input_layernorm": "layers.{i}.attention_norm",
    f"{LAYER}self_attn.dense": "layers.{i}.attention.out",
    f"{LAYER}self_attn.q_layernorm": "layers.{i}.attention.q_norm",
    f"{LAYER}self_attn.k_layernorm": "layers.{i}.attention.k_norm",
    f"{LAYER}mlp.fc1": "layers.{i}.ffn.up",
    f"{LAYER}mlp.fc2": "layers.{i}.ffn.down",
}
RULES = {
    "model.embed_tokens.weight": "embedding.weight",
    f"{LAYER}self_attn.rotary_emb.inv_freq": "DROP",
    **ATTENTION,
    **common.weights_and_biases(NAMED),
}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim, partial=config.get("partial_rotary_factor"))
    norm = LayerNorm(config.number("layer_norm_eps"))
    qk_norm = QKNorm(norm) if config.flag("qk_layernorm") else None
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=True, out_bias=True, qk_norm=qk_norm)
    mlp = MLP(config.size("intermediate_size"), config.choice("hidden_act", common.ACTIVATIONS), bias=True)
    layers = common.num_layers(config)
    made = common.decoder(config, [attention] * layers, [mlp] * layers, norm)
    return replace(common.every_layer(made, ffn_norm=None, parallel=True), head_bias=True)
