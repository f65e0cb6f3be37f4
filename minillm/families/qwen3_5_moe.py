"""Llama, except: all that Qwen3.5 changes; the feed-forward is a mixture of experts whose weights are renormalised,
with a shared one times sigmoid(w x).

Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B, Qwen3.6-35B-A3B, Qwen3.8-2.4T-A95B (2026). Published files have all experts of a
layer in one tensor, those in FP8 one tensor for each.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import qwen2_moe, qwen3_5
from minillm.families.recurrent import hybrid
from minillm.families.shared import common, wrapped
from minillm.spec import Decoder, MoE

DEFAULTS = {
    **{key: value for key, value in qwen3_5.DEFAULTS.items() if key != "intermediate_size"},
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8,
    "num_experts": 256,
    "norm_topk_prob": True,
    "mlp_only_layers": None,
}
RULES = qwen3_5.rules_with(qwen2_moe.RULES)
inner = wrapped.inner_of_text
media = qwen3_5.media


def spec(config: Config) -> Decoder:
    if not config.flag("norm_topk_prob"):
        raise ValueError("config.json: norm_topk_prob is false; this family's code divides by the sum all the same")
    if config.get("mlp_only_layers"):
        raise ValueError("config.json: mlp_only_layers lists layers; in this family all have experts")
    made = qwen3_5.mixers(config)
    shared = common.gated_mlp(config, "shared_expert_intermediate_size")
    router, size = common.router(config, renormalize=True), config.size("moe_intermediate_size")
    moe = MoE(router, size, shared.activation, shared, shared_gate=True)
    return common.decoder(config, made, [moe] * len(made), hybrid.norm(config))
