"""Llama, except: latent attention as in DeepSeek-V2, and a router whose sigmoid scores get a correction bias for the
choice only, limited to the groups with the best sum of two; weights renormalised and scaled.

DeepSeek-V3, V3-0324, V3.1, R1 (arXiv:2412.19437; arXiv:2501.12948), Kimi-K2 (one group; arXiv:2507.20534). Published in
block-scaled FP8. The extra layers after the last, which predict further tokens, are left out.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import deepseek_v2
from minillm.families.shared import experts, latent
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

prediction_layers = experts.prediction_layers


def rules(config: Config) -> dict[str, str]:
    return experts.with_mixtures(config, latent.rules(config))


def router(config: Config) -> Router:
    config.choice("topk_method", {"noaux_tc": None})
    config.choice("scoring_func", {"sigmoid": None})
    return experts.grouped(config, "n_routed_experts")


def spec(config: Config) -> Decoder:
    return deepseek_v2.decoder(config, router(config), latent.layout(config))
