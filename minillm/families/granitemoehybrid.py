"""Llama, except: all that Granite changes; most layers have Mamba 2 in place of attention, which has no positions
unless the config says so; every layer has a gated MLP, shared, and most have a mixture of experts beside it.

Granite 4.0 Nano, Micro, Tiny and Small (IBM, 2025).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minillm.config import Config
from minillm.families import granite, granitemoe
from minillm.families.recurrent import state_space
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import Decoder, GatedMLP, Mixer, MoE, Norm

DEFAULTS = {
    **granitemoe.DEFAULTS,
    **state_space.DEFAULTS,
    "shared_intermediate_size": 1024,
    "position_embedding_type": None,
    "layer_types": None,
    "mamba_d_head": "auto",
}
LAYER, FFN = granitemoe.MIXTURE.removesuffix("block_sparse_moe."), granitemoe.FFN


def rules(config: Config) -> dict[str, str]:
    mlp = FFN if config.get("num_local_experts") == 0 else f"{FFN}shared."
    return {
        **granitemoe.RULES,
        **state_space.rules(f"{LAYER}mamba."),
        f"{LAYER}shared_mlp.input_linear.weight": f"{mlp}gate_up.weight",
        f"{LAYER}shared_mlp.output_linear.weight": f"{mlp}down.weight",
    }


# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = granitemoe.TRANSFORMERS


def spec(config: Config) -> Decoder:
    config.choice("hidden_act", {"silu": None, "swish": None})  # which the convolutions are followed by too
    positions = config.get("position_embedding_type")
    if positions not in (None, "rope", "nope"):
        raise ValueError(f"config.json: position_embedding_type is {shown(positions)}, expected rope, nope or null")
    attention = granite.mixer(config)
    attention = attention if positions == "rope" else replace(attention, rope=None)
    inner = int(config.number("mamba_expand") * config.size("hidden_size"))
    known: dict[str, Mixer] = {"attention": attention, "full_attention": attention}
    layers, kinds = common.num_layers(config), config.get("layer_types") or ["mamba"] * common.num_layers(config)
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= set(known):  # sizes of no use otherwise
        known |= dict.fromkeys(
            ("mamba", "linear_attention"),
            state_space.mamba(config, Norm(config.number("rms_norm_eps")), inner=inner),
        )
    else:
        config.without_effect([*state_space.DEFAULTS, *state_space.LEFT_OVER])
    if not isinstance(kinds, list) or len(kinds) != layers or not all(str(kind) in known for kind in kinds):
        raise ValueError(f"config.json: layer_types must list mamba or attention for each of the {layers} layers")
    shared: GatedMLP = common.gated_mlp(config, "shared_intermediate_size")
    ffn: Any = shared
    if config.get("num_local_experts") == 0:
        config.without_effect(("intermediate_size", "num_experts_per_tok"))
    else:
        router = common.router(config, "num_local_experts", score="softmax_chosen")
        ffn = MoE(router, config.size("intermediate_size"), shared.activation, shared)
    return granite.scaled(config, common.decoder(config, [known[kind] for kind in kinds], [ffn] * layers))
