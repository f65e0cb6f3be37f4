"""Llama, except: all that Command-R7B changes; a mixture of experts in place of each MLP but the first, with a softmax
or sigmoid router, whose output is added to a shared expert's or averaged with it; RMSNorms if the config has
`rms_norm_eps`.

North-Mini-Code (Cohere, 2026).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minillm.config import MAX_POSITIONS, Config
from minillm.families import cohere, cohere2
from minillm.families.shared import common, experts
from minillm.spec import Decoder, GatedMLP, LayerNorm, MoE, Norm

DEFAULTS: dict[str, Any] = {
    **cohere2.DEFAULTS,
    "head_dim": 128,
    "num_experts_per_tok": 2,
    "num_experts": 8,
    "num_shared_experts": 0,
    "shared_expert_combination_strategy": "average",
    "expert_selection_fn": "softmax",
    "norm_topk_prob": True,
    "rms_norm_eps": None,
    "first_k_dense_replace": 0,
    "mlp_layer_types": None,
    "prefix_dense_sliding_window_pattern": 1,
    "prefix_dense_intermediate_size": None,
}
RULES = {**common.DENSE_RULES, **common.MOE_RULES, **experts.SHARED_RULES}


def spec(config: Config) -> Decoder:
    layers, first = common.num_layers(config), common.first_layers(config, "first_k_dense_replace")
    before, behind = (config.size(f"{each}sliding_window_pattern") for each in ("prefix_dense_", ""))
    sliding = [(i + 1) % before != 0 if i < first else (i - first + 1) % behind != 0 for i in range(layers)]
    windows = common.typed_windows(config, config.size("sliding_window", MAX_POSITIONS), sliding)
    ffn = _ffn(config, [i >= first for i in range(layers)])
    attention, turned = cohere.mixer(config), [isinstance(each, GatedMLP) and before == 1 for each in ffn]
    ropes = [attention.rope if window or other else None for window, other in zip(windows, turned, strict=True)]
    eps = config.optional_number("rms_norm_eps")
    norm = LayerNorm(config.number("layer_norm_eps"), bias=False) if eps is None else Norm(eps)
    config.without_effect(["model_max_length", "layer_norm_eps"])
    made = common.decoder(config, common.in_layers(attention, windows, ropes), ffn, norm)
    return replace(common.every_layer(made, ffn_norm=None, parallel=True), logit_scale=config.number("logit_scale"))


def _ffn(config: Config, default: list[bool]) -> list[GatedMLP | MoE]:
    """Each layer's. What is averaged with a shared expert is half of each."""
    expert, count = common.gated_mlp(config, "intermediate_size"), config.get("num_shared_experts")
    width = config.optional_size("prefix_dense_intermediate_size") or expert.intermediate_size
    half = config.choice("shared_expert_combination_strategy", {"average": True, "sum": False}) and count != 0
    score: Any = config.choice("expert_selection_fn", {"softmax": "softmax_chosen", "sigmoid": "sigmoid"})
    renormalize = config.flag("norm_topk_prob") and score == "sigmoid"
    router = common.router(config, score=score, renormalize=renormalize, scale=0.5 if half else 1.0)
    shared = None
    if count != 0:
        joint = expert.intermediate_size * config.size("num_shared_experts", 64)
        shared = replace(expert, intermediate_size=joint, factors=(1.0, 0.5) if half else (1.0, 1.0))
    moe = MoE(router, expert.intermediate_size, expert.activation, shared)
    return common.typed_layers(config, moe, replace(expert, intermediate_size=width), default)
