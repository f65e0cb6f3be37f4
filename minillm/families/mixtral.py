"""Llama, except: every feed-forward is a mixture of experts, top 2 of 8, whose weights are renormalised.

Mixtral 8x7B, 8x22B, WizardLM-2-8x22B, llm-jp-3-8x1.8b (Jiang et al., arXiv:2401.04088). An absent or null
`sliding_window` means none. `w1` is the gate of an expert, `w3` its up and `w2` its down projection.
"""

from __future__ import annotations

from minillm.config import Config, number
from minillm.families import mistral
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, MoE, Router

DEFAULTS = {
    **mistral.DEFAULTS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "router_jitter_noise": 0.0,
}

EXPERT_RULES = {
    "model.layers.{i}.block_sparse_moe.gate.weight": "layers.{i}.ffn.router.weight",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight": "layers.{i}.ffn.experts.gate_up[{e}.gate]",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight": "layers.{i}.ffn.experts.gate_up[{e}.up]",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight": "layers.{i}.ffn.experts.down[{e}]",
    "model.layers.{i}.mlp.gate.weight": "layers.{i}.ffn.router.weight",  # of transformers 5
    **common.STACKED_EXPERTS,
}
RULES = {**common.without_mlp(common.DENSE_RULES), **EXPERT_RULES}
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"block_sparse_moe.": "mlp."}


def spec(config: Config) -> Decoder:
    number("router_jitter_noise", config.get("router_jitter_noise") or 0, low=0)  # of training
    return sparse(config, common.router(config, "num_local_experts", renormalize=True))


def sparse(config: Config, router: Router) -> Decoder:
    """Mistral's attention and a mixture of experts with this router in every layer."""
    num_heads, num_kv_heads, head_dim = common.heads(config)
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim), common.window(config))
    expert = common.gated_mlp(config, "intermediate_size")
    layers = common.num_layers(config)
    return common.decoder(
        config, [attention] * layers, [MoE(router, expert.intermediate_size, expert.activation)] * layers
    )
