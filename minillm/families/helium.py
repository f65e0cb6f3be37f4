"""Llama, except: neighbours form the pairs of the rotation; every norm rounds after its weight; q, k and v may have
biases.

Helium-1-preview, 2B (Kyutai, 2025).
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Norm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 48000,
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-8,
    "rope_theta": 100000.0,
}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = replace(rotary.rope(config, head_dim), layout="interleaved")
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=config.flag("attention_bias"))
    mlp = common.gated_mlp(config, "intermediate_size", config.flag("mlp_bias"))
    layers, norm = common.num_layers(config), Norm(config.number("rms_norm_eps"), cast="after_weight")
    return common.decoder(config, [attention] * layers, [mlp] * layers, norm)
