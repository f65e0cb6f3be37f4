"""Llama, except: each head of q and k is normalised as in Qwen3; where `sliding_window` is a number, layers from
`max_window_layers` on have that window; after the first dense layers all have DeepSeek-V3's mixtures.

dots.llm1, 142B with 14B active (rednote-hilab, arXiv:2506.05767).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import deepseek_v3, glm4_moe, llama
from minillm.families.shared import common, experts, rotary
from minillm.spec import GQA, Decoder, Norm, QKNorm

DEFAULTS = {
    **llama.DEFAULTS,
    **glm4_moe.MIXTURES,
    "vocab_size": 152064,
    "hidden_size": 4608,
    "intermediate_size": 10944,
    "num_hidden_layers": 62,
    "n_shared_experts": None,
    "n_routed_experts": None,
    "num_experts_per_tok": None,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "num_nextn_predict_layers": 0,
    "sliding_window": 4096,
    "max_window_layers": 62,
    "layer_types": None,
}


def rules(config: Config) -> dict[str, str]:
    return experts.with_mixtures(config, {**common.DENSE_RULES, **common.QK_NORM_RULES})


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope, bias = rotary.rope(config, head_dim), config.flag("attention_bias")
    qk_norm = QKNorm(Norm(config.number("rms_norm_eps")))
    slides, first = common.window(config), common.first_windowed(config)
    windows = common.typed_windows(config, slides, [i >= first for i in range(common.num_layers(config))])
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias, qk_norm=qk_norm)
    ffn = experts.mixtures(config, deepseek_v3.router(config), common.gated_mlp(config, "intermediate_size"))
    return common.decoder(config, common.in_layers(attention, windows, [rope] * len(ffn)), ffn)
