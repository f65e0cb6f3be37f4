"""Llama, except: no biases, and where `sliding_window` is a number every layer looks back over that window only.

Mistral 7B v0.1 to v0.3, Nemo (head_dim 128 is not hidden_size / num_heads), Large, Codestral, Devstral (Jiang et al.,
arXiv:2310.06825). An absent `sliding_window` means 4096, an explicit null means none.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}

RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim), common.window(config))
    return common.dense(config, [attention] * common.num_layers(config))
