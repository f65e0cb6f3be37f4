"""Llama, except: seven of eight layers are Mamba (selective scan) in place of attention, with norms on the vector of
the steps, B and C; attention has no positions; every other feed-forward is a mixture of experts, whose weights are not
renormalised. The final norm and the feed-forward have other names.

Jamba v0.1, 1.5, 1.6, 1.7, Jamba Reasoning 3B, Jamba 2 (AI21 Labs, 2024 to 2026; Lieber et al., arXiv:2403.19887).
"""

from __future__ import annotations

from typing import Any

from minillm.config import Config
from minillm.families.recurrent import selective
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, GatedMLP, Mixer, MoE, Norm

DEFAULTS: dict[str, Any] = {
    **selective.DEFAULTS,
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262144,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_inner_layernorms": True,
}
FFN, LAYER = "layers.{i}.ffn.", "model.layers.{i}."
MLP = f"{LAYER}feed_forward."
RULES = {
    **common.without_mlp(common.DENSE_RULES),
    **selective.rules(f"{LAYER}mamba."),
    "model.final_layernorm.weight": "norm.weight",
    f"{LAYER}pre_ff_layernorm.weight": f"{FFN[:-1]}_norm.weight",
    **{f"{MLP}{part}_proj.weight": f"{FFN}gate_up.weight[{part}]" for part in ("gate", "up")},
    f"{MLP}down_proj.weight": f"{FFN}down.weight",
    f"{MLP}router.weight": f"{FFN}router.weight",
    **{f"{MLP}experts.{{e}}.{part}_proj.weight": f"{FFN}experts.gate_up[{{e}}.{part}]" for part in ("gate", "up")},
    f"{MLP}experts.{{e}}.down_proj.weight": f"{FFN}experts.down[{{e}}]",
    f"{MLP}experts.gate_up_proj": f"{FFN}experts.gate_up",  # as transformers 5 has them in memory
    f"{MLP}experts.down_proj": f"{FFN}experts.down",
}


def spec(config: Config) -> Decoder:
    common.only(config, {"sliding_window": None, "mamba_inner_layernorms": True})
    num_heads, num_kv_heads, head_dim = common.heads(config)
    attention = GQA(num_heads, num_kv_heads, head_dim, None)
    mamba = selective.mamba(config, Norm(config.number("rms_norm_eps")))
    mixers: list[Mixer] = [attention if each else mamba for each in _every(config, "attn_layer")]
    mlp = common.gated_mlp(config, "intermediate_size")
    ffns: list[GatedMLP | MoE] = [mlp] * len(mixers)
    config.without_effect(("num_experts_per_tok", "expert_layer_period", "expert_layer_offset"))  # of one expert
    if config.size("num_experts", common.MAX_EXPERTS) > 1:
        moe = MoE(common.router(config), mlp.intermediate_size, mlp.activation)
        ffns = [moe if each else mlp for each in _every(config, "expert_layer")]
    return common.decoder(config, mixers, ffns)


def _every(config: Config, key: str) -> list[bool]:
    """Which layers are the `offset`-th of each `period`."""
    period, offset = config.size(f"{key}_period", common.MAX_LAYERS), config.get(f"{key}_offset")
    if type(offset) is not int or not 0 <= offset < period:
        raise ValueError(f"config.json: {key}_offset is {shown(offset)}, expected a number below {key}_period {period}")
    return [i % period == offset for i in range(common.num_layers(config))]
