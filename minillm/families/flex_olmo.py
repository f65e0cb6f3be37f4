"""Llama, except: all that OLMo 2 changes, and a mixture in place of each MLP, whose experts were trained on different
data and are weighted by a softmax over all.

FlexOlmo-7x7B-1T (Ai2, arXiv:2507.07024).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import olmo2
from minillm.families.shared import common
from minillm.spec import Decoder, MoE

DEFAULTS = {
    **{key: value for key, value in olmo2.DEFAULTS.items() if key != "mlp_bias"},
    "vocab_size": 100352,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "num_experts": 7,
    "num_experts_per_tok": 5,
    "norm_topk_prob": False,
}
RULES = {**common.without_mlp(olmo2.RULES), **common.MOE_RULES}


def spec(config: Config) -> Decoder:
    expert = common.gated_mlp(config, "intermediate_size")
    router = common.router(config, renormalize=config.flag("norm_topk_prob"))
    return common.every_layer(olmo2.spec(config), ffn=MoE(router, expert.intermediate_size, expert.activation))
