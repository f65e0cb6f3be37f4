"""Llama, except: after `first_k_dense_replace` dense layers, mixtures of many small experts with a softmax router and
shared experts that every token goes through.

DeepSeek-MoE-16B (Dai et al., arXiv:2401.06066). No class of transformers runs it.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, experts, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 102400,
    "first_k_dense_replace": 0,
    "moe_intermediate_size": 1407,
    "moe_layer_freq": 1,
    "n_routed_experts": None,
    "n_shared_experts": None,
    "norm_topk_prob": False,
    "num_experts_per_tok": None,
    "scoring_func": "softmax",
}

RULES = {**common.DENSE_RULES, **common.MOE_RULES, **experts.SHARED_RULES}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, layers = config.flag("attention_bias"), common.num_layers(config)
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim), qkv_bias=bias, out_bias=bias)
    config.choice("scoring_func", {"softmax": None})
    router = common.router(config, "n_routed_experts", renormalize=config.flag("norm_topk_prob"))
    dense = common.gated_mlp(config, "intermediate_size")
    return common.decoder(config, [attention] * layers, experts.mixtures(config, router, dense))
