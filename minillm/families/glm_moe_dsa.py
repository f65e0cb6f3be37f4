"""Llama, except: all that DeepSeek-V3.2 changes, in other sizes; indexers rotate pairs of neighbours.

GLM-5, 5.1, 5.2, 5.3, 744B with 40B active (Z.ai, 2026). From 5.2 on most layers use the choice of an earlier layer's
indexer. `head_dim` in a config is the rotated part of a head, or the other part.
"""

from __future__ import annotations

import itertools

from minillm.config import Config, same
from minillm.families import deepseek_v32
from minillm.families.shared import common, latent
from minillm.guard.screen import shown
from minillm.spec import Decoder

UNUSED = ("index_share_for_mtp_iteration", "moe_router_dtype")  # of layers left out, and of how a router is computed
DEFAULTS = {
    **deepseek_v32.DEFAULTS,
    **dict.fromkeys(UNUSED),
    "num_experts": None,
    "vocab_size": 154880,
    "hidden_size": 6144,
    "intermediate_size": 12288,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "index_n_heads": 32,
    "indexer_rope_interleave": True,
    "indexer_types": None,
    "index_topk_pattern": None,
    "index_topk_freq": 1,
    "index_skip_topk_offset": 2,
}
rules, prediction_layers = deepseek_v32.rules, deepseek_v32.prediction_layers
LETTERS = {"F": "full", "S": "shared"}


def lenders(config: Config) -> list[int | None]:
    """For each layer the one whose choice it takes, None where it has an indexer: as `indexer_types` lists them, or
    `index_topk_pattern`, or every `index_topk_freq`-th from one on."""
    layers, pattern = common.num_layers(config), config.get("index_topk_pattern")
    offset, step = config.get("index_skip_topk_offset"), config.size("index_topk_freq")
    if type(offset) is not int:
        raise ValueError(f"config.json: index_skip_topk_offset is {shown(offset)}, expected a whole number")
    kinds = config.get("indexer_types")
    if kinds is None and pattern is not None:
        kinds = [LETTERS.get(letter) for letter in pattern] if isinstance(pattern, str) else pattern
    if kinds is None:
        kinds = ["shared" if max(i - offset + 1, 0) % step else "full" for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in ("full", "shared") for kind in kinds):
        raise ValueError(f"config.json: indexer_types must list full or shared for each of the {layers} layers")
    if kinds[0] != "full":
        raise ValueError("config.json: indexer_types has shared first; a layer before it must have an indexer")
    last = itertools.accumulate((i if kind == "full" else 0 for i, kind in enumerate(kinds)), max)
    return [None if kind == "full" else lender for kind, lender in zip(kinds, last, strict=True)]


def spec(config: Config) -> Decoder:
    config.without_effect(UNUSED)
    same({key: config.get(key) for key in ("n_routed_experts", "num_experts")})
    layout = "interleaved" if config.flag("indexer_rope_interleave") else "half"
    return latent.indexed(config, deepseek_v32.dense(config), layout, lenders(config))
