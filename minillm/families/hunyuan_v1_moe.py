"""Llama, except: all that Hunyuan's dense models change; every layer has experts, whose weights are divided by their
sum, and one that every token goes through.

Hunyuan-A13B, 80B with 13B active (Tencent, 2025). Its config lists for each layer what is the same in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import hunyuan_v1_dense
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import Decoder, MoE

LISTED = ("num_experts", "moe_topk", "moe_intermediate_size", "num_shared_expert")
DEFAULTS = {
    **{key: value for key, value in hunyuan_v1_dense.DEFAULTS.items() if key != "mlp_bias"},
    "num_experts": 1,
    "moe_topk": 1,
    "moe_intermediate_size": None,
    "num_shared_expert": None,
}
TRANSFORMERS = {"mlp.gate.wg": "mlp.gate"}  # the module of the router, of which the checkpoint names a part
FFN, OURS = "model.layers.{i}.mlp.", "layers.{i}.ffn."
RULES = {
    **common.without_mlp(hunyuan_v1_dense.RULES),
    **common.MOE_RULES,
    f"{FFN}gate.wg.weight": f"{OURS}router.weight",
    **{f"{FFN}shared_mlp.{part}_proj.weight": f"{OURS}shared.gate_up.weight[{part}]" for part in ("gate", "up")},
    f"{FFN}shared_mlp.down_proj.weight": f"{OURS}shared.down.weight",
}


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    """One number for a list of equal ones."""
    made = dict(values)
    for key in LISTED:
        listed = made.get(key)
        if isinstance(listed, list) and listed and all(each == listed[0] for each in listed):
            made[key] = listed[0]
    return made


def spec(config: Config) -> Decoder:
    shared = common.gated_mlp(config, "intermediate_size")
    for key, wanted in (("moe_intermediate_size", shared.intermediate_size), ("num_shared_expert", 1)):
        if config.get(key) not in (None, wanted):
            raise ValueError(f"config.json: {key} is {shown(config.get(key))}, expected {wanted} in every layer")
    router = common.router(config, chosen="moe_topk", renormalize=True)
    moe, layers = MoE(router, shared.intermediate_size, shared.activation, shared), common.num_layers(config)
    return common.decoder(config, [hunyuan_v1_dense.mixer(config)] * layers, [moe] * layers)
