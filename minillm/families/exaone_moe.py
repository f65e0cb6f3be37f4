"""Llama, except: all that EXAONE 4.0 32B changes, but its norms, which stand in front of attention and MLP; after one
dense layer all have DeepSeek-V3's mixtures.

K-EXAONE, 236B with 23B active (LG AI Research, 2026).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import exaone4
from minillm.families.shared import common, experts
from minillm.spec import Decoder, GatedMLP, MoE

DEFAULTS = {
    **exaone4.DEFAULTS,
    "moe_intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "mlp_layer_types": None,
}
RULES = {
    **common.DENSE_RULES,
    **common.QK_NORM_RULES,
    **common.MOE_RULES,
    **experts.SHARED_RULES,
    "model.layers.{i}.mlp.e_score_correction_bias": "layers.{i}.ffn.router.bias",
    "mtp.*": common.AHEAD,
}


def spec(config: Config) -> Decoder:
    router = experts.grouped(config, "num_experts")
    dense, width = common.gated_mlp(config, "intermediate_size"), config.size("moe_intermediate_size")
    shared = GatedMLP(width * config.size("num_shared_experts", 64), dense.activation)
    moe, first = MoE(router, width, dense.activation, shared), experts.first_dense(config)
    ffn = common.typed_layers(config, moe, dense, [i >= first for i in range(common.num_layers(config))])
    return common.decoder(config, exaone4.mixers(config), ffn)
