"""Llama, except: neighbours form the pairs of the rotation; `use_bias` gives biases to attention and MLP; head_dim is
128 whatever hidden_size / num_heads gives.

ERNIE-4.5-0.3B (Baidu, 2025), whose head is the embedding.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
}
RULES = common.DENSE_RULES


def attention(config: Config) -> GQA:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope, bias = replace(rotary.rope(config, head_dim), layout="interleaved"), config.flag("use_bias")
    return GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias)


def spec(config: Config) -> Decoder:
    return common.dense(config, [attention(config)] * common.num_layers(config), mlp_bias=config.flag("use_bias"))
