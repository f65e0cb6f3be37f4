"""Llama, except: latent attention and mixtures of experts as in DeepSeek-V3, but with a softmax for a router, without a
correction bias; and a query grows with its position, as in Ministral 3.

Mistral Small 4, 119B with 6B active (Mistral AI, 2026), by itself or inside a model that also reads images.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import deepseek_v3, ministral3
from minillm.families.shared import common, experts, latent
from minillm.spec import Decoder

DEFAULTS = {
    **{key: deepseek_v3.DEFAULTS[key] for key in deepseek_v3.DEFAULTS
       if key not in ("topk_method", "scoring_func", "num_nextn_predict_layers", "num_mtp_layers")},
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "n_routed_experts": 128,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 256,
    "q_lora_rank": 1024,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 1048576,
    "rope_parameters": {**ministral3.ROPE, "rope_theta": 10000.0, "factor": 128.0,
                        "original_max_position_embeddings": 8192},
}  # fmt: skip


def rules(config: Config) -> dict[str, str]:
    return {**latent.rules(config), **common.MOE_RULES, **experts.SHARED_RULES}


def spec(config: Config) -> Decoder:
    turned = config.size("qk_rope_head_dim")
    part = turned / (config.size("qk_nope_head_dim") + turned)
    rope, temperature = ministral3.positions(config, turned, part)
    attention = replace(latent.attention(config, latent.layout(config), rope), temperature=temperature)
    router = replace(experts.grouped(config, "n_routed_experts"), score="softmax", bias=False)
    ffn = experts.mixtures(config, router, common.gated_mlp(config, "intermediate_size"))
    return common.decoder(config, [attention] * len(ffn), ffn)
