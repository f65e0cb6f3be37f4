"""Llama, except: all that DeepSeek-V3 changes, in texts as long as what an indexer leaves to each query.

DeepSeek-V3.2 (arXiv:2512.02556), published in block-scaled FP8. In every layer an indexer of small heads picks the
`index_topk` keys that a query sees, which is all of them up to 2048 positions: that is the context here, and indexers
are left out.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import deepseek_v3, glm4_moe_lite
from minillm.families.shared import common
from minillm.spec import Decoder

FIXED = {"rope_interleave": True, "mlp_bias": False}
UNUSED = ("layer_types", "index_head_dim", "index_n_heads")  # what every layer is, and sizes of indexers
DEFAULTS = {
    **deepseek_v3.DEFAULTS,
    **FIXED,
    **dict.fromkeys(UNUSED),
    "max_position_embeddings": 163840,
    "mlp_layer_types": None,
    "index_topk": 2048,
}
prediction_layers = deepseek_v3.prediction_layers


def rules(config: Config) -> dict[str, str]:
    return {**deepseek_v3.rules(config), "model.layers.{i}.self_attn.indexer.*": common.CHOICE}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(UNUSED)
    made = glm4_moe_lite.spec(config)
    return replace(made, context=min(made.context, config.size("index_topk")))
