"""Llama, except: all that Qwen2 changes.

MiMo-7B Base, SFT, RL (Xiaomi, arXiv:2505.07608). What predicts further tokens is left out. transformers has no class
for it: the tests compare with Qwen2's.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import qwen2
from minillm.families.shared import common
from minillm.spec import Decoder

DEFAULTS = {
    **qwen2.DEFAULTS,
    "vocab_size": 151680,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 640000.0,
    "attention_bias": True,
    "use_mrope": False,
    "num_nextn_predict_layers": 1,
}
RULES = {**qwen2.RULES, "model.mtp_layers.*": common.AHEAD}


def spec(config: Config) -> Decoder:
    config.get("num_nextn_predict_layers")
    for key in ("attention_bias", "use_mrope"):
        if config.flag(key) != DEFAULTS[key]:
            raise ValueError(f"config.json: {key} is {config.get(key)}; of this family {DEFAULTS[key]} works")
    return qwen2.spec(config)
