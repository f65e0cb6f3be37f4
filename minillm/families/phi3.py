"""Llama, except: q, k, v lie in one tensor and gate, up in another; LongRoPE for long contexts; a window in the small
ones; the newer ones turn only part of each head.

Phi-3 mini, small contexts and 128k, Phi-3 medium, Phi-3.5-mini, Phi-4, Phi-4-mini (arXiv:2404.14219, arXiv:2412.08905).
The scaling that some files call "su" or "yarn" is LongRoPE.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    # Said by some files, and of no effect in the family's code where they are as here.
    "lm_head_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
}
RULES = {
    "model.layers.{i}.self_attn.qkv_proj.weight": "layers.{i}.attention.qkv.weight",
    "model.layers.{i}.mlp.gate_up_proj.weight": "layers.{i}.ffn.gate_up.weight",
    **common.DENSE_RULES,
}


def spec(config: Config) -> Decoder:
    for key in ("attention_bias", "mlp_bias", "lm_head_bias", "full_attn_mod", "interpolate_factor"):
        if (value := config.get(key)) not in (None, DEFAULTS[key]):
            raise ValueError(f"config.json: {key} is {value!r}; this family's code knows {DEFAULTS[key]!r} only")
    num_heads, num_kv_heads, head_dim = common.heads(config)
    values = config.rope()
    if values["rope_type"] in ("su", "yarn"):
        values["rope_type"] = "longrope"
    if values["rope_type"] == "longrope":
        values.setdefault("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    rope = rotary.rope(config, head_dim, values, config.get("partial_rotary_factor"))
    attention = GQA(num_heads, num_kv_heads, head_dim, rope, common.window(config))
    return common.dense(config, [attention] * common.num_layers(config))
