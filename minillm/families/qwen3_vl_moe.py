"""Llama, except: all that Qwen3-MoE changes; the weights of the chosen experts are always renormalised.

Qwen3-VL-30B-A3B and 235B-A22B (arXiv:2511.21631), with the tower of the dense models. All experts of a layer lie in one
tensor, `gate_up_proj` `[E, H, 2F]` and `down_proj` `[E, F, H]`; FP8 releases have one tensor for each expert.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import qwen3_moe, qwen3_vl
from minillm.families.shared import common, wrapped
from minillm.spec import Decoder

DEFAULTS = {
    **qwen3_moe.DEFAULTS,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 128000,
    "rope_theta": 500000.0,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 4,
    "num_experts": 60,
    "norm_topk_prob": True,
}
inner = wrapped.inner_of_text
media = qwen3_vl.media


def rules(config: Config) -> dict[str, str]:
    turned = f": e f h -> (e h) f, e={config.size('num_experts', common.MAX_EXPERTS)}"
    stacked = {pattern: target + turned for pattern, target in common.STACKED_EXPERTS.items()}
    return wrapped.rules({**qwen3_moe.RULES, **stacked}, seen=True)


def spec(config: Config) -> Decoder:
    if not config.flag("norm_topk_prob"):
        raise ValueError("config.json: norm_topk_prob is false; this family's code divides by the sum all the same")
    return qwen3_moe.spec(config)
