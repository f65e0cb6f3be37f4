"""Llama, except: the first half of each head turns; each head of q and k may be normalised; q, k and v may have biases;
and after the first dense layers all have DeepSeek-V3's mixtures.

GLM-4.5-Air, GLM-4.5, 4.6, 4.7 (GLM-4.5 team, arXiv:2508.06471). The layer after the last, which predicts further
tokens, is left out.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import deepseek_v3, llama
from minillm.families.shared import common, experts, rotary
from minillm.spec import GQA, Decoder, Norm, QKNorm

# What a config says of DeepSeek-V3's mixtures, with what is published of this family.
MIXTURES = {
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 1,
    "num_mtp_layers": None,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
}
DEFAULTS = {
    **llama.DEFAULTS,
    **MIXTURES,
    "vocab_size": 151552,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "use_qk_norm": False,
}
prediction_layers = experts.prediction_layers


def rules(config: Config) -> dict[str, str]:
    return experts.with_mixtures(config, {**common.DENSE_RULES, **common.QK_NORM_RULES})


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim, partial=config.get("partial_rotary_factor"))
    qk_norm = QKNorm(Norm(config.number("rms_norm_eps"))) if config.flag("use_qk_norm") else None
    bias = config.flag("attention_bias")
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, qk_norm=qk_norm)
    ffn = experts.mixtures(config, deepseek_v3.router(config), common.gated_mlp(config, "intermediate_size"))
    return common.decoder(config, [attention] * len(ffn), ffn)
