"""Llama, except: q, k and v have biases, and the feed-forward is a mixture of experts whose weights are not
renormalised unless `norm_topk_prob`, plus a shared expert times sigmoid(w x).

Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B (Yang et al., arXiv:2407.10671). `decoder_sparse_step` and `mlp_only_layers` leave
some layers dense. Where windows are on, the even layers below `max_window_layers` have one.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import qwen2
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, MoE

DEFAULTS = {
    **qwen2.DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4,
    "num_experts": 60,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
    "qkv_bias": True,
}

RULES = {
    **common.DENSE_RULES,
    **common.MOE_RULES,
    "model.layers.{i}.mlp.shared_expert.gate_proj.weight": "layers.{i}.ffn.shared.gate_up.weight[gate]",
    "model.layers.{i}.mlp.shared_expert.up_proj.weight": "layers.{i}.ffn.shared.gate_up.weight[up]",
    "model.layers.{i}.mlp.shared_expert.down_proj.weight": "layers.{i}.ffn.shared.down.weight",
    "model.layers.{i}.mlp.shared_expert_gate.weight": "layers.{i}.ffn.shared_gate.weight",
}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim)
    bias = config.flag("qkv_bias")
    slides, first, layers = common.switched_window(config), config.size("max_window_layers"), common.num_layers(config)
    windows = common.typed_windows(config, slides, [i % 2 == 0 and i < first for i in range(layers)])
    attention = [GQA(num_heads, num_kv_heads, head_dim, rope, window, qkv_bias=bias) for window in windows]
    dense = common.gated_mlp(config, "intermediate_size")
    router = common.router(config, renormalize=config.flag("norm_topk_prob"))
    shared = common.gated_mlp(config, "shared_expert_intermediate_size")
    moe = MoE(router, config.size("moe_intermediate_size"), dense.activation, shared, shared_gate=True)
    return common.decoder(config, attention, common.sparse_layers(config, moe, dense))
