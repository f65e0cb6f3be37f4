"""Llama, except: all that Granite changes, and a mixture of experts in place of each MLP, whose weights are a softmax
over the chosen ones. Gate and up of all experts lie in one tensor, and so do their other products.

Granite 3.x 1B-A400M and 3B-A800M, PowerMoE-3B (IBM, 2024).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import granite
from minillm.families.shared import common
from minillm.spec import Decoder, MoE

DEFAULTS = {
    **{key: value for key, value in granite.DEFAULTS.items() if key != "mlp_bias"},
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
MIXTURE, FFN = "model.layers.{i}.block_sparse_moe.", "layers.{i}.ffn."
RULES = {
    **common.without_mlp(common.DENSE_RULES),
    f"{MIXTURE}router.layer.weight": f"{FFN}router.weight",
    f"{MIXTURE}input_linear.weight": f"{FFN}experts.gate_up",
    f"{MIXTURE}output_linear.weight": f"{FFN}experts.down",
}
# What transformers calls a module in place of the checkpoint.
TRANSFORMERS = {"router.layer": "router", "input_linear.weight": "experts.gate_up_proj"}


def spec(config: Config) -> Decoder:
    router = common.router(config, "num_local_experts", score="softmax_chosen")
    activation = config.choice("hidden_act", common.ACTIVATIONS)
    moe = MoE(router, config.size("intermediate_size"), activation)
    layers = common.num_layers(config)
    return granite.scaled(config, common.decoder(config, [granite.mixer(config)] * layers, [moe] * layers))
