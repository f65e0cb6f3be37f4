"""Llama 2, 3, 3.1, 3.2, 3.3, and what is Llama underneath: TinyLlama, DeepSeek-Coder, R1-Distill-Llama, CALM3, ELYZA,
Swallow, Tanuki-8B (Touvron et al., arXiv:2307.09288; arXiv:2407.21783). The baseline that other families differ from.

    h = x + attention(norm(x));  y = h + swiglu(norm(h));  logits = head(norm(y))
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias = config.flag("attention_bias")
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim), qkv_bias=bias, out_bias=bias)
    return common.dense(config, [attention] * common.num_layers(config), mlp_bias=config.flag("mlp_bias"))
