"""Llama, except: all that DeepSeek-V3 changes, and in every layer an indexer: small heads that choose the `index_topk`
keys that a query sees (docs/sparse-attention.md).

DeepSeek-V3.2 (arXiv:2512.02556), published in block-scaled FP8. Its indexers rotate the two halves of a head, its
attention pairs of neighbours. DeepSeek's own code multiplies q and k of an indexer by a Hadamard matrix and rounds them
to FP8; without the rounding the matrix changes nothing, and here neither is done.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import deepseek_v3, glm4_moe_lite
from minillm.families.shared import common, latent
from minillm.spec import Decoder

FIXED = {"rope_interleave": True, "mlp_bias": False}
UNUSED = ("layer_types",)  # what every layer is
DEFAULTS = {
    **deepseek_v3.DEFAULTS,
    **FIXED,
    **dict.fromkeys(UNUSED),
    "max_position_embeddings": 163840,
    "mlp_layer_types": None,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 64,
}
prediction_layers = deepseek_v3.prediction_layers


def rules(config: Config) -> dict[str, str]:
    return {**deepseek_v3.rules(config), **latent.INDEXER_RULES}


def spec(config: Config) -> Decoder:
    made = dense(config)
    return latent.indexed(config, made, "half", [None] * len(made.layers))


def dense(config: Config) -> Decoder:
    """The same without indexers."""
    common.only(config, FIXED)
    config.without_effect(UNUSED)
    return glm4_moe_lite.spec(config)
