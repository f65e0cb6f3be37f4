"""Llama, except: LayerNorms without weights, eps 1e-5; q, k and v are clamped to `clip_qkv` where it is a number.

OLMo 1B, 7B in the layout of transformers (arXiv:2402.00838).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, LayerNorm

DEFAULTS = {**llama.DEFAULTS, "vocab_size": 50304, "clip_qkv": None}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, clip = config.flag("attention_bias"), config.optional_number("clip_qkv")
    rope = rotary.rope(config, head_dim)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias, clip=clip)
    layers = common.num_layers(config)
    mlp = common.gated_mlp(config, "intermediate_size")
    return common.decoder(config, [attention] * layers, [mlp] * layers, LayerNorm(1e-5, affine=False))
