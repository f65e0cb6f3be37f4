"""Llama, except: each head of q and k is normalised as in Qwen3, and the feed-forward is a mixture of experts without a
shared one, whose weights are renormalised where `norm_topk_prob` says so (published configs do).

Qwen3-30B-A3B, 235B-A22B, Qwen3-Coder (Yang et al., arXiv:2505.09388). With `use_sliding_window` every layer has the
window.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import qwen2
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, MoE, Norm, QKNorm

DEFAULTS = {
    **qwen2.DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
}

RULES = {**common.DENSE_RULES, **common.MOE_RULES, **common.QK_NORM_RULES}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    common.first_windowed(config)  # published, and without effect in this family
    window, layers = common.switched_window(config), common.num_layers(config)
    bias = config.flag("attention_bias")
    attention = GQA(
        num_heads,
        num_kv_heads,
        head_dim,
        rotary.rope(config, head_dim),
        window,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=QKNorm(Norm(config.number("rms_norm_eps"))),
    )
    dense = common.gated_mlp(config, "intermediate_size")
    router = common.router(config, renormalize=config.flag("norm_topk_prob"))
    moe = MoE(router, config.size("moe_intermediate_size"), dense.activation)
    return common.decoder(config, [attention] * layers, common.sparse_layers(config, moe, dense))
