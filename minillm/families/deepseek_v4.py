"""Llama, except: four residual streams, mixed around each part of a layer (hyper-connections); attention with one key
for all heads, over a window and over entries that stand for blocks of positions, some of which an indexer chooses;
every feed-forward is a mixture with a shared expert and clamped gates, and in the first layers a table chooses experts
by token id.

DeepSeek-V4-Flash and Pro (2026). Published with experts in FP4 and the rest in FP8, with the tensor names of the
authors' own code. The multi-token prediction layer is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minillm.config import Config
from minillm.families.shared import common, compressed
from minillm.guard.screen import shown
from minillm.spec import ClampedSwiGLU, Decoder, GatedMLP, HyperConnections, MoE, Norm

FIXED = {
    "num_key_value_heads": 1, "attention_bias": False, "mlp_bias": False, "n_shared_experts": 1, "hidden_act": "silu",
    "norm_topk_prob": True, "topk_method": "noaux_tc",
}  # fmt: skip
UNUSED = ("num_nextn_predict_layers", "expert_dtype", "router_jitter_noise", "n_group", "topk_group")
DEFAULTS: dict[str, Any] = {
    **FIXED,
    **dict.fromkeys(UNUSED),
    **dict.fromkeys(("layer_types", "compress_ratios", "compress_rates", "mlp_layer_types", "rope_parameters")),
    **dict.fromkeys(("compress_rate_csa", "compress_rate_hca", "qk_rope_head_dim", "partial_rotary_factor")),
    "rope_scaling": None, "original_max_position_embeddings": None, "vocab_size": 129280, "hidden_size": 4096,
    "moe_intermediate_size": 2048, "num_hidden_layers": 43, "num_attention_heads": 64, "head_dim": 512,
    "q_lora_rank": 1024, "num_experts_per_tok": 6, "n_routed_experts": 256, "scoring_func": "sqrtsoftplus",
    "routed_scaling_factor": 1.5, "max_position_embeddings": 1048576, "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "num_hash_layers": 3,
    "swiglu_limit": 10.0, "sliding_window": 128, "o_groups": 8, "o_lora_rank": 1024, "index_n_heads": 64,
    "index_head_dim": 128, "index_topk": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
RULES = {**compressed.RULES, "mtp.*": common.AHEAD}
TRANSFORMERS = compressed.TRANSFORMERS
SCORES = {"sqrtsoftplus": "sqrt_softplus", "sigmoid": "sigmoid", "softmax": "softmax"}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    config.without_effect(UNUSED)
    norm = Norm(config.number("rms_norm_eps"), cast="after_weight")
    mixers = compressed.attentions(config, norm)
    made = common.decoder(config, mixers, _mixtures(config), norm)
    rounds = config.size("hc_sinkhorn_iters", 1000)
    plain = Norm(norm.eps, affine=False)
    streams = HyperConnections(config.size("hc_mult", 64), plain, rounds, config.number("hc_eps"))
    return replace(made, streams=streams)


def _mixtures(config: Config) -> list[MoE]:
    """Each layer's; a table chooses the experts of the first ones, or of those that the config lists."""
    activation = ClampedSwiGLU(1.0, config.number("swiglu_limit"), 0.0)
    inner, layers = config.size("moe_intermediate_size"), common.num_layers(config)
    score, scale = config.choice("scoring_func", SCORES), config.number("routed_scaling_factor")
    router = common.router(config, "n_routed_experts", score=score, renormalize=True, scale=scale, bias=True)
    moe = MoE(router, inner, activation, GatedMLP(inner, activation))
    hashed = replace(moe, router=replace(router, bias=False), hashed=config.size("vocab_size"))
    kinds, first = config.get("mlp_layer_types"), config.get("num_hash_layers")
    if kinds is None:
        if type(first) is not int or first < 0:
            raise ValueError(f"config.json: num_hash_layers is {shown(first)}, expected a number of layers")
        return [hashed if index < first else moe for index in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(each in ("hash_moe", "moe") for each in kinds):
        raise ValueError(f"config.json: mlp_layer_types must list hash_moe or moe for each of the {layers} layers")
    return [hashed if each == "hash_moe" else moe for each in kinds]
