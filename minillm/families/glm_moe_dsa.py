"""Llama, except: all that DeepSeek-V3.2 changes, in other sizes, its context of 2048 too.

GLM-5, 5.1, 5.2, 5.3, 744B with 40B active (Z.ai, 2026). From 5.2 on some layers see what the indexer of an earlier one
chose. `head_dim` in a config is the part of a head that turns, or the part that does not.
"""

from __future__ import annotations

from minillm.config import Config, same
from minillm.families import deepseek_v32
from minillm.spec import Decoder

# Which layers have an indexer, and how it turns its heads.
UNUSED = ("indexer_types", "indexer_rope_interleave", "index_topk_freq", "index_skip_topk_offset", "index_topk_pattern",
          "index_share_for_mtp_iteration", "moe_router_dtype")  # fmt: skip
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
}
rules, prediction_layers = deepseek_v32.rules, deepseek_v32.prediction_layers


def spec(config: Config) -> Decoder:
    config.without_effect(UNUSED)
    same({key: config.get(key) for key in ("n_routed_experts", "num_experts")})
    return deepseek_v32.spec(config)
