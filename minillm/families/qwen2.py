"""Llama, except: q, k and v have biases (the output has none), and with `use_sliding_window` the layers from
`max_window_layers` on look back over `sliding_window` positions only.

Qwen2, Qwen2.5, Qwen2.5-Coder, R1-Distill-Qwen (Yang et al., arXiv:2407.10671, arXiv:2412.15115). Small sizes tie the
head to the embedding. Published configs state a `sliding_window` that `use_sliding_window: false` switches off.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "tie_word_embeddings": False,
}

RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim)
    attention = [
        GQA(num_heads, num_kv_heads, head_dim, rope, window, qkv_bias=True) for window in common.windows(config)
    ]
    return common.dense(config, attention)
