"""Llama, except: q and k are normalised over all heads together, `clip_qkv` clamps q, k and v, and the feed-forward is
a mixture of experts (64, top 8, weights not renormalised).

OLMoE-1B-7B (Muennighoff et al., arXiv:2409.02060).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, MoE, Norm, QKNorm

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "clip_qkv": None,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": False,
}

RULES = {**common.without_mlp(common.DENSE_RULES), **common.MOE_RULES, **common.QK_NORM_RULES}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, layers = config.flag("attention_bias"), common.num_layers(config)
    attention = GQA(
        num_heads,
        num_kv_heads,
        head_dim,
        rotary.rope(config, head_dim),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=QKNorm(Norm(config.number("rms_norm_eps")), "all"),
        clip=config.optional_number("clip_qkv"),
    )
    expert = common.gated_mlp(config, "intermediate_size")
    router = common.router(config, renormalize=config.flag("norm_topk_prob"))
    moe = MoE(router, expert.intermediate_size, expert.activation)
    return common.decoder(config, [attention] * layers, [moe] * layers)
