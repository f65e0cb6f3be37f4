"""Llama, except: q and k are normalised over their full width; the first `rotary_dim` values of each head turn; every
feed-forward is a mixture whose sigmoid scores get a correction bias for the choice only, renormalised.

MiniMax-M2, M2.1, M2.5, M2.7, 230B with 10B active (MiniMax, 2025). Published in FP8. `w1` is the gate of an expert,
`w3` its up and `w2` its down projection.
"""

from __future__ import annotations

from minillm.config import Config, same
from minillm.families import mixtral
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, MoE, Norm, QKNorm

# Published, and of no effect in the family's code where they are as here; attn_type_list has a 1 for each layer.
FIXED = {
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "use_routing_bias": True,
    "shared_intermediate_size": 0,
    "scoring_func": "sigmoid",
    "sliding_window": None,
}
AHEAD = {"use_mtp": True, "mtp_transformer_layers": 1, "num_mtp_modules": 3}  # of layers that no checkpoint has
DEFAULTS = {
    **mixtral.DEFAULTS,
    **FIXED,
    **AHEAD,
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "head_dim": 128,
    "max_position_embeddings": 196608,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "num_experts_per_tok": 8,
    "num_local_experts": 256,
    "rotary_dim": None,
    "partial_rotary_factor": None,
    "attn_type_list": None,
}
RULES = {
    **mixtral.RULES,
    **common.QK_NORM_RULES,
    "model.layers.{i}.block_sparse_moe.e_score_correction_bias": "layers.{i}.ffn.router.bias",
}
TRANSFORMERS = mixtral.TRANSFORMERS


def spec(config: Config) -> Decoder:
    layers, kinds = common.num_layers(config), config.get("attn_type_list")
    common.only(config, FIXED)
    if kinds not in (None, [1] * layers):
        raise ValueError("config.json: attn_type_list has another number than 1; this family's code knows no other")
    for key in (*AHEAD, "router_jitter_noise"):
        config.get(key)
    num_heads, num_kv_heads, head_dim = common.heads(config)
    turned, part = config.optional_size("rotary_dim"), config.get("partial_rotary_factor")
    if turned is not None:
        same({"partial_rotary_factor": part, f"rotary_dim {turned} of {head_dim}": (part := turned / head_dim)})
    rope, norm = rotary.rope(config, head_dim, partial=part), Norm(config.number("rms_norm_eps"))
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, qk_norm=QKNorm(norm, "all"))
    expert = common.gated_mlp(config, "intermediate_size")
    router = common.router(config, "num_local_experts", score="sigmoid", renormalize=True, bias=True)
    moe = MoE(router, expert.intermediate_size, expert.activation)
    return common.decoder(config, [attention] * layers, [moe] * layers)
