"""A mixture of experts beside an MLP, each with norms of its own: names and numbers."""

from __future__ import annotations

from minillm.config import Config
from minillm.families.shared import common
from minillm.spec import GatedMLP, MoE, Norm

DEFAULTS = {
    "enable_moe_block": False,
    **dict.fromkeys(("num_experts", "top_k_experts", "moe_intermediate_size")),
}
LAYER, FFN = "model.layers.{i}.", "layers.{i}.ffn."
RULES = {
    f"{LAYER}pre_feedforward_layernorm.weight": f"{FFN}shared_norm.weight",
    f"{LAYER}post_feedforward_layernorm_1.weight": f"{FFN}shared_post_norm.weight",
    f"{LAYER}pre_feedforward_layernorm_2.weight": f"{FFN}norm.weight",
    f"{LAYER}post_feedforward_layernorm_2.weight": f"{FFN}post_norm.weight",
    f"{LAYER}router.proj.weight": f"{FFN}router.weight",
    f"{LAYER}router.scale": f"{FFN}router.input_scale",
    f"{LAYER}router.per_expert_scale": f"{FFN}router.expert_scale",
    **{pattern.replace(".mlp.", "."): to for pattern, to in common.MOE_RULES.items() if ".experts." in pattern},
    **{f"{LAYER}mlp.{part}_proj.weight": f"{FFN}shared.gate_up.weight[{part}]" for part in ("gate", "up")},
    f"{LAYER}mlp.down_proj.weight": f"{FFN}shared.down.weight",
}


def mixture(config: Config, mlp: GatedMLP, norm: Norm) -> GatedMLP | MoE:
    """The MLP, or with `enable_moe_block` a mixture that it is the shared part of."""
    if not config.flag("enable_moe_block"):
        config.without_effect(DEFAULTS)
        return mlp
    before = Norm(norm.eps)
    router = common.router(config, "num_experts", "top_k_experts", renormalize=True, normalize=before)
    return MoE(router, config.size("moe_intermediate_size"), mlp.activation, mlp, norm=norm)
