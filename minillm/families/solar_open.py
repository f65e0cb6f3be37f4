"""Llama, except: q, k and v may have biases, and every layer has DeepSeek-V3's mixture.

Solar-Open-100B, 12B active (Upstage, 2025).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import deepseek_v3, glm4_moe, llama
from minillm.families.shared import common, experts, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    **glm4_moe.MIXTURES,
    "vocab_size": 196608,
    "moe_intermediate_size": 1280,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "partial_rotary_factor": 1.0,
    "first_k_dense_replace": 0,
    "num_nextn_predict_layers": 0,
}


def rules(config: Config) -> dict[str, str]:
    return experts.with_mixtures(config, common.DENSE_RULES)


def spec(config: Config) -> Decoder:
    if first := experts.first_dense(config):
        raise ValueError(f"config.json: first_k_dense_replace is {first}; this family's code has no dense layers")
    num_heads, num_kv_heads, head_dim = common.heads(config)
    if (part := config.get("partial_rotary_factor")) != 1:
        raise ValueError(f"config.json: partial_rotary_factor is {shown(part)}; this family turns whole heads")
    rope = rotary.rope(config, head_dim)
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=config.flag("attention_bias"))
    config.optional_size("intermediate_size")  # of dense layers, which there are none of
    dense = common.gated_mlp(config, "moe_intermediate_size")
    moe = experts.mixture(config, deepseek_v3.router(config), dense)
    layers = common.num_layers(config)
    return common.decoder(config, [attention] * layers, [moe] * layers)
