"""Llama, except: all that GLM changes, and more norms stand behind attention and MLP, before the residual. A
checkpoint's `post_attention_layernorm` is still the one in front of the MLP.

GLM-4-9B-0414, GLM-4-32B-0414, GLM-Z1 (Z.ai, 2025).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import glm
from minillm.families.shared import common
from minillm.spec import Decoder

DEFAULTS = glm.DEFAULTS
RULES = {
    **glm.RULES,
    "model.layers.{i}.post_self_attn_layernorm.weight": "layers.{i}.post_attention_norm.weight",
    "model.layers.{i}.post_mlp_layernorm.weight": "layers.{i}.post_ffn_norm.weight",
}


def spec(config: Config) -> Decoder:
    made = glm.spec(config)
    return common.every_layer(made, post_attention_norm=made.final_norm, post_ffn_norm=made.final_norm)
