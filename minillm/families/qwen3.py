"""Llama, except: each head of q and k is RMS-normalised over head_dim before the rotation, and windows as in Qwen2.

Qwen3 dense, 0.6B to 32B (Yang et al., arXiv:2505.09388). head_dim is 128 whatever hidden_size / num_heads gives. No
biases unless `attention_bias` asks for them.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import qwen2
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Norm, QKNorm

DEFAULTS = {**qwen2.DEFAULTS, "head_dim": 128, "attention_bias": False}

RULES = {**common.DENSE_RULES, **common.QK_NORM_RULES}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim)
    bias = config.flag("attention_bias")
    qk_norm = QKNorm(Norm(config.number("rms_norm_eps")))
    attention = [
        GQA(num_heads, num_kv_heads, head_dim, rope, window, qkv_bias=bias, out_bias=bias, qk_norm=qk_norm)
        for window in common.windows(config)
    ]
    return common.dense(config, attention)
