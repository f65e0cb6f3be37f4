"""Llama, except: all that Granite's mixtures change, and a shared expert beside them unless `shared_intermediate_size`
is 0.

Granite 3 MoE (shared) previews (IBM, 2025).
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families import granitemoe
from minillm.families.shared import common
from minillm.spec import Decoder, MoE

DEFAULTS = {**granitemoe.DEFAULTS, "shared_intermediate_size": 0}
SHARED = {"input": "gate_up", "output": "down"}
RULES = {
    **granitemoe.RULES,
    **{
        f"model.layers.{{i}}.shared_mlp.{name}_linear.weight": f"{granitemoe.FFN}shared.{to}.weight"
        for name, to in SHARED.items()
    },
}
TRANSFORMERS = granitemoe.TRANSFORMERS


def spec(config: Config) -> Decoder:
    made = granitemoe.spec(config)
    if config.get("shared_intermediate_size") == 0:
        return made
    moe, shared = made.layers[0].ffn, common.gated_mlp(config, "shared_intermediate_size")
    assert isinstance(moe, MoE)
    return common.every_layer(made, ffn=replace(moe, shared=shared))
