"""Llama, except: all that LFM2 changes, and after the first layers come mixtures, whose sigmoid scores get a correction
bias for the choice only; the width of the dense feed-forwards is the one stated.

LFM2-8B-A1B, LFM2-24B-A2B (Liquid AI, 2025). transformers adds 1e-6, minillm 1e-20, to the sum of the chosen scores
before it divides by that sum; so if the sum is 1, its weights are smaller by a millionth. `w1` is the gate of an
expert, `w3` its up and `w2` its down projection.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families.recurrent import convolved
from minillm.families.shared import common
from minillm.spec import Decoder, GatedMLP, MoE

DEFAULTS = {
    **convolved.DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "use_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}
FFN, OURS = f"{convolved.LAYER}feed_forward.", "layers.{i}.ffn."
RULES = {
    **convolved.RULES,
    f"{FFN}gate.weight": f"{OURS}router.weight",
    f"{FFN}expert_bias": f"{OURS}router.bias",
    f"{FFN}experts.{{e}}.w1.weight": f"{OURS}experts.gate_up[{{e}}.gate]",
    f"{FFN}experts.{{e}}.w3.weight": f"{OURS}experts.gate_up[{{e}}.up]",
    f"{FFN}experts.{{e}}.w2.weight": f"{OURS}experts.down[{{e}}]",
    f"{FFN}experts.gate_up_proj": f"{OURS}experts.gate_up",
    f"{FFN}experts.down_proj": f"{OURS}experts.down",
}


def spec(config: Config) -> Decoder:
    layers, first = common.num_layers(config), common.first_layers(config, "num_dense_layers")
    scale, bias = config.number("routed_scaling_factor"), config.flag("use_expert_bias")
    router = common.router(config, score="sigmoid", renormalize=config.flag("norm_topk_prob"), scale=scale, bias=bias)
    dense, moe = GatedMLP(config.size("intermediate_size")), MoE(router, config.size("moe_intermediate_size"))
    return convolved.decoder(config, [dense if i < first else moe for i in range(layers)])
