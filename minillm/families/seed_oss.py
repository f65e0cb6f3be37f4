"""Llama, except: q, k and v have biases and the output may have one, by a key of its own; head_dim is 128 whatever
hidden_size / num_heads gives.

Seed-OSS-36B (ByteDance Seed, 2025).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 155136,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 524288,
    "attention_bias": True,
    "attention_out_bias": False,
}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim)
    of_qkv, of_out = config.flag("attention_bias"), config.flag("attention_out_bias")
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=of_qkv, out_bias=of_out)
    return common.dense(config, [attention] * common.num_layers(config), mlp_bias=config.flag("mlp_bias"))
