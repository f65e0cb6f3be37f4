"""Llama, except: `qkv_bias` is a key of its own, and `bias` one for the output of attention and the MLP; head_dim is
128.

InternLM3-8B (Cai et al., arXiv:2403.17297, is about the one before). transformers 5 calls the two `attention_bias` and
`mlp_bias`, and its code has biases everywhere or nowhere.
"""

from __future__ import annotations

from minillm.config import Config, same
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 128512,
    "intermediate_size": 10240,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "qkv_bias": False,
    "bias": False,
}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    of_qkv, of_rest = (_either(config, *keys) for keys in (("qkv_bias", "attention_bias"), ("bias", "mlp_bias")))
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=of_qkv, out_bias=of_rest)
    return common.dense(config, [attention] * common.num_layers(config), mlp_bias=of_rest)


def _either(config: Config, key: str, other: str) -> bool:
    """A flag under one of two names that mean the same."""
    same({name: config.values.get(name) for name in (key, other)})
    return config.flag(key) or config.flag(other)
