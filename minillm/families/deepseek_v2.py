"""Llama, except: latent attention, and after `first_k_dense_replace` dense layers mixtures of many small experts with a
softmax router, shared experts, and (the large model) a choice limited to the best groups.

DeepSeek-V2, V2-Lite, V2.5, Coder-V2 (arXiv:2405.04434). YaRN's temperature is applied twice, separately: mscale over
mscale_all_dim to cos and sin, mscale_all_dim squared to the scores.
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, experts, latent
from minillm.spec import Decoder, Router

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 102400,
    "num_key_value_heads": None,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_group": None,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "qk_head_dim": None,
    "routed_scaling_factor": 1.0,
    "topk_group": None,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "v_head_dim": 128,
    "num_experts_per_tok": None,
    "moe_intermediate_size": 1407,
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
}


def rules(config: Config) -> dict[str, str]:
    return {**latent.rules(config), **common.MOE_RULES, **experts.SHARED_RULES}


def spec(config: Config) -> Decoder:
    groups: dict[str, Any]
    if config.choice("topk_method", {"greedy": False, "group_limited_greedy": True}):
        groups = {"num_groups": config.size("n_group"), "top_groups": config.size("topk_group")}
    else:
        groups = {}  # the choice is not limited, whatever is stated
        config.optional_size("n_group"), config.optional_size("topk_group")
    config.choice("scoring_func", {"softmax": None})
    if config.flag("norm_topk_prob"):
        raise ValueError(
            "config.json: norm_topk_prob is true; the authors' code divides by the sum then, transformers does not, "
            "and every published model of this family says false"
        )
    router = common.router(config, "n_routed_experts", scale=config.number("routed_scaling_factor"), **groups)
    return decoder(config, router, mlp_bias=config.flag("mlp_bias"))


def decoder(config: Config, router: Router, layout: str = "interleaved", mlp_bias: bool = False) -> Decoder:
    """Latent attention in every layer, and the router's mixture in all but the first ones."""
    dense, layers = common.gated_mlp(config, "intermediate_size", mlp_bias), common.num_layers(config)
    attention = [latent.attention(config, layout)] * layers
    return common.decoder(config, attention, experts.mixtures(config, router, dense))
