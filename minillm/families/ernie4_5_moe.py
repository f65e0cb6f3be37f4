"""Llama, except: all that ERNIE-4.5 changes, and in every `moe_layer_interval`-th layer from `moe_layer_start_index` to
`moe_layer_end_index` (-1: the last) a mixture with shared experts, whose softmax scores get a correction bias for the
choice only, renormalised.

ERNIE-4.5-21B-A3B and 300B-A47B (Baidu, 2025). What predicts further tokens is left out.
"""

from __future__ import annotations

from minillm.config import Config, number
from minillm.families import ernie4_5
from minillm.families.shared import common, experts
from minillm.guard.screen import shown
from minillm.spec import Decoder, GatedMLP, MoE

DEFAULTS = {
    **ernie4_5.DEFAULTS,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": None,
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
}
AHEAD = ("mtp.*", "model.mtp_block.*", "model.mtp_emb_norm.*", "model.mtp_hidden_norm.*", "model.mtp_linear_proj.*")
RULES = {
    **common.DENSE_RULES,
    **common.MOE_RULES,
    **experts.SHARED_RULES,
    "model.layers.{i}.mlp.moe_statics.e_score_correction_bias": "layers.{i}.ffn.router.bias: one e -> (one e), one=1",
    **dict.fromkeys(AHEAD, common.AHEAD),
}


def spec(config: Config) -> Decoder:
    number("moe_norm_min", config.get("moe_norm_min"), high=1e-9)  # what the sum is at least, which it always is
    bias, layers = config.flag("use_bias"), common.num_layers(config)
    dense, width = common.gated_mlp(config, "intermediate_size", bias), config.size("moe_intermediate_size")
    router = common.router(config, "moe_num_experts", "moe_k", renormalize=True, bias=True)
    count = config.get("moe_num_shared_experts") or 0
    if type(count) is not int or not 0 <= count <= 64:
        raise ValueError(f"config.json: moe_num_shared_experts is {shown(count)}, expected a number from 0 to 64")
    if bias:
        raise ValueError("config.json: use_bias is true; no published mixture of this family has biases")
    moe = MoE(router, width, dense.activation, GatedMLP(width * count, dense.activation) if count else None)
    first, last = (_index(config, key) for key in ("moe_layer_start_index", "moe_layer_end_index"))
    every, last = config.size("moe_layer_interval"), layers - 1 if last == -1 else last
    ffn = [moe if first <= i <= last and (i + 1) % every == 0 else dense for i in range(layers)]
    return common.decoder(config, [ernie4_5.attention(config)] * layers, ffn)


def _index(config: Config, key: str) -> int:
    if type(value := config.get(key)) is not int or value < -1:
        raise ValueError(f"config.json: {key} is {shown(value)}, expected the number of a layer, or -1")
    return value
