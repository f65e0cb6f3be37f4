"""Llama, except: latent attention as in DeepSeek-V2, and a router whose sigmoid scores get a correction bias for the
choice only, limited to the groups with the best sum of two; weights renormalised and scaled.

DeepSeek-V3, V3-0324, V3.1, R1 (arXiv:2412.19437; arXiv:2501.12948), Kimi-K2 (one group; arXiv:2507.20534). Published in
block-scaled FP8. The extra layers after the last, which predict further tokens, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from minillm.config import Config
from minillm.families import deepseek_v2
from minillm.families.shared import common
from minillm.spec import Decoder, Router

DEFAULTS = {
    **deepseek_v2.DEFAULTS,
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "rope_interleave": True,
    "num_nextn_predict_layers": 1,
    "num_mtp_layers": None,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
}

MAX_PREDICTED = 64  # far more tokens ahead than anyone predicts


def rules(config: Config) -> dict[str, str]:
    return with_mixtures(config, deepseek_v2.rules(config))


def with_mixtures(config: Config, rules: Mapping[str, str]) -> dict[str, str]:
    """A family's rules and those of these mixtures. The multi-token-prediction layers come after the last one and are
    no part of the decoder."""
    return {
        **{f"{layer}*": common.AHEAD for layer in prediction_layers(config)},
        **rules,
        **common.MOE_RULES,
        **deepseek_v2.SHARED_RULES,
        "model.layers.{i}.mlp.gate.e_score_correction_bias": "layers.{i}.ffn.router.bias",
    }


def prediction_layers(config: Config) -> dict[str, dict[str, tuple[int, ...]]]:
    """How the names of each multi-token-prediction layer's tensors begin, and the shapes of those that no other layer
    has: embedding and head of its own, and what joins the next token to the hidden state. All of them are plain."""
    first, vocab, hidden = common.num_layers(config), config.size("vocab_size"), config.size("hidden_size")
    values = {key: config.get(key) for key in ("num_nextn_predict_layers", "num_mtp_layers")}
    extra = max((config.size(key, MAX_PREDICTED) for key, value in values.items() if value), default=0)
    own: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (vocab, hidden),
        "enorm.weight": (hidden,),
        "hnorm.weight": (hidden,),
        "eh_proj.weight": (hidden, 2 * hidden),
        "shared_head.norm.weight": (hidden,),
        "shared_head.head.weight": (vocab, hidden),
    }
    return {f"model.layers.{first + i}.": own for i in range(extra)}


def router(config: Config) -> Router:
    config.choice("topk_method", {"noaux_tc": None})
    config.choice("scoring_func", {"sigmoid": None})
    return grouped(config, "n_routed_experts")


def grouped(config: Config, experts: str) -> Router:
    """Of as many as the key `experts` says."""
    return common.router(
        config,
        experts,
        score="sigmoid",
        renormalize=config.flag("norm_topk_prob"),
        scale=config.number("routed_scaling_factor"),
        bias=True,
        num_groups=config.optional_size("n_group") or 1,
        top_groups=config.optional_size("topk_group") or 1,
        group_score="top2_sum",
    )


def layout(config: Config) -> str:
    return "interleaved" if config.flag("rope_interleave") else "half"


def spec(config: Config) -> Decoder:
    return deepseek_v2.latent(config, router(config), layout(config))
