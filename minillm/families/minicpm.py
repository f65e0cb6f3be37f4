"""Llama, except: the embedding has a factor, the outputs of attention and MLP have one that falls with the number of
layers, and logits have one that falls with the width.

MiniCPM 1B, 2B (arXiv:2404.06395), MiniCPM4 0.5B, 8B (OpenBMB, arXiv:2506.07900), whose sparse attention is left out.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, Embedding

DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key not in ("attention_bias", "mlp_bias")},
    "tie_word_embeddings": True,
    "scale_emb": 1.0,
    "scale_depth": 1.0,
    "dim_model_base": 1,
    "mup_denominator": None,  # the number of layers once more
}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    layers, stated = common.num_layers(config), config.get("mup_denominator")
    if stated not in (None, layers):
        raise ValueError(f"config.json: mup_denominator is {shown(stated)}, expected the {layers} layers")
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim))
    return scaled(config, common.dense(config, [attention] * layers))


def scaled(config: Config, made: Decoder) -> Decoder:
    """The decoder with its three factors; one that is null changes nothing."""
    depth, base = config.optional_number("scale_depth"), config.optional_number("dim_model_base")
    branch = 1.0 if depth is None else depth / len(made.layers) ** 0.5
    whole = replace(
        made,
        embedding=Embedding(config.number("scale_emb")),
        logit_scale=1.0 if base is None else base / made.hidden_size,
    )
    return common.every_layer(whole, branch_scale=branch)
