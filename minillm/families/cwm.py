"""Llama, except: every fourth layer, the first among them, sees everything, and the others look back over a window.

Code World Model, 32B (Meta, arXiv:2510.02387). Positions are scaled as in Llama 3.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 128256,
    "hidden_size": 6144,
    "intermediate_size": 21504,
    "num_hidden_layers": 64,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "rope_parameters": {
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "sliding_window": 8192,
    "layer_types": None,
}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    sliding = [i % 4 != 0 for i in range(common.num_layers(config))]
    windows = common.typed_windows(config, common.window(config), sliding)
    if config.flag("attention_bias"):
        raise ValueError("config.json: attention_bias is true; this family's attention has no biases")
    attention = GQA(num_heads, num_kv_heads, head_dim, rope := rotary.rope(config, head_dim))
    layers = common.in_layers(attention, windows, [rope] * len(windows))
    return common.dense(config, layers, mlp_bias=config.flag("mlp_bias"))
