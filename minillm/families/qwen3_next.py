"""Llama, except: three of four layers are recurrent (Gated DeltaNet); the fourth has a gate on what its heads give,
turns a quarter of each, and normalises q and k by head; norms have weights around zero; the feed-forward is a mixture
of experts with a shared one times sigmoid(w x).

Qwen3-Next-80B-A3B, Qwen3-Coder-Next (2025). What x is multiplied with on its way into a recurrent layer lies in two
tensors, in the order of k heads: of each its q, its k, the v of its v heads, their z; and their b and a.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama, qwen2_moe
from minillm.families.recurrent import hybrid
from minillm.families.shared import common
from minillm.spec import Decoder, MoE

DEFAULTS = {
    **llama.DEFAULTS,
    **hybrid.DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10,
    "num_experts": 512,
    "norm_topk_prob": True,
}


def rules(config: Config) -> dict[str, str]:
    net = hybrid.delta_net(config)
    group = net.num_v_heads // net.num_k_heads
    sizes = f"{net.k_dim} {net.k_dim} {group * net.v_dim} {group * net.v_dim}"
    by_head = f"(k part r) ... -> (part k r) ..., k={net.num_k_heads} part=2"
    return {
        **qwen2_moe.RULES,
        **common.QK_NORM_RULES,
        **hybrid.RULES,
        **hybrid.PREDICTION,
        f"{hybrid.LAYER}in_proj_qkvz.weight": f"{hybrid.MIXER}qkvz.weight: {net.num_k_heads} x {sizes} -> parts",
        f"{hybrid.LAYER}in_proj_ba.weight": f"{hybrid.MIXER}ba.weight: {by_head}",
    }


def spec(config: Config) -> Decoder:
    mixers = hybrid.mixers(config, hybrid.gated_attention(config), hybrid.delta_net(config), hybrid.every(config))
    dense = common.gated_mlp(config, "intermediate_size")
    router = common.router(config, renormalize=config.flag("norm_topk_prob"))
    shared = common.gated_mlp(config, "shared_expert_intermediate_size")
    moe = MoE(router, config.size("moe_intermediate_size"), dense.activation, shared, shared_gate=True)
    return common.decoder(config, mixers, common.sparse_layers(config, moe, dense), hybrid.norm(config))
