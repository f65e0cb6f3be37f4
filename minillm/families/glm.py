"""Llama, except: neighbours form the pairs of the rotation, of the first half of each head only; q, k and v have biases
(the output has none); gate and up lie in one tensor.

GLM-4-9B as transformers has it: glm-4-9b-hf, glm-4-9b-chat-hf, glm-edge (GLM team, arXiv:2406.12793).
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}
RULES = {**common.DENSE_RULES, "model.layers.{i}.mlp.gate_up_proj.weight": "layers.{i}.ffn.gate_up.weight"}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim, partial=config.get("partial_rotary_factor"))
    turned = replace(rope, layout="interleaved")
    attention = GQA(num_heads, num_kv_heads, head_dim, turned, qkv_bias=config.flag("attention_bias"))
    return common.dense(config, [attention] * common.num_layers(config))
