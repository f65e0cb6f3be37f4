"""Llama, except: four numbers of the config are factors: on embeddings, on scores in place of 1 / sqrt(head_dim), on
what attention and MLP add, and, as a divisor, on logits.

Granite 3.0 to 4.2 without "hybrid" (IBM, 2024 to 2026).
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Embedding, Scores

FACTORS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
DEFAULTS = {**llama.DEFAULTS, **dict.fromkeys(FACTORS, 1.0)}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    attention = mixer(config)
    return scaled(config, common.dense(config, [attention] * common.num_layers(config), config.flag("mlp_bias")))


def mixer(config: Config) -> GQA:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, scores = config.flag("attention_bias"), Scores(config.number("attention_multiplier"))
    rope = rotary.rope(config, head_dim)
    return GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias, scores=scores)


def scaled(config: Config, made: Decoder) -> Decoder:
    """The decoder with the factors that are not those of its scores."""
    whole = replace(
        made,
        embedding=Embedding(config.number("embedding_multiplier")),
        logit_scale=1 / config.number("logits_scaling"),
    )
    return common.every_layer(whole, branch_scale=config.number("residual_multiplier"))
