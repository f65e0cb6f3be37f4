"""Llama, except: norms stand behind attention and MLP, before the residual, and none in front; q and k are normalised
over their full width; every norm rounds after its weight.

OLMo 2 1B, 7B, 13B, 32B (arXiv:2501.00656).
"""

from __future__ import annotations

from collections.abc import Sequence

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Norm, QKNorm, Rope

DEFAULTS = {**llama.DEFAULTS, "vocab_size": 50304, "rms_norm_eps": 1e-5}
RULES = {
    **common.DENSE_RULES,
    **common.QK_NORM_RULES,
    "model.layers.{i}.post_attention_layernorm.weight": "layers.{i}.post_attention_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "layers.{i}.post_ffn_norm.weight",
}


def spec(config: Config) -> Decoder:
    layers = common.num_layers(config)
    return decoder(config, [None] * layers, [rotary.rope(config, common.heads(config)[2])] * layers)


def decoder(config: Config, windows: Sequence[int | None], ropes: Sequence[Rope]) -> Decoder:
    """Layers with these windows and rotary embeddings."""
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, norm = config.flag("attention_bias"), Norm(config.number("rms_norm_eps"), cast="after_weight")
    qk_norm = QKNorm(norm, "all")
    attention = GQA(num_heads, num_kv_heads, head_dim, ropes[0], qkv_bias=bias, out_bias=bias, qk_norm=qk_norm)
    mlp = common.gated_mlp(config, "intermediate_size")
    made = common.decoder(config, common.in_layers(attention, windows, ropes), [mlp] * len(windows), norm)
    return common.every_layer(made, attention_norm=None, ffn_norm=None, post_attention_norm=norm, post_ffn_norm=norm)
