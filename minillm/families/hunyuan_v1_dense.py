"""Llama, except: each head of q and k is normalised behind its rotation; positions scaled by an `alpha` turn by a base
of theta * alpha^(d / (d - 2)), whatever the length.

Hunyuan 0.5B to 7B (Tencent, 2025), Hunyuan-MT.
"""

from __future__ import annotations

from minillm.config import Config, number
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Norm, QKNorm, Rope

DEFAULTS = {**llama.DEFAULTS, "vocab_size": 290943, "rms_norm_eps": 1e-5, "eod_token_id": None}
RULES = {
    **common.DENSE_RULES,
    **{
        f"model.layers.{{i}}.self_attn.{name}_layernorm.weight": f"layers.{{i}}.attention.{to}_norm.weight"
        for name, to in (("query", "q"), ("key", "k"))
    },
}


def spec(config: Config) -> Decoder:
    return common.dense(config, [mixer(config)] * common.num_layers(config))


def mixer(config: Config) -> GQA:
    config.without_effect(["eod_token_id"])
    num_heads, num_kv_heads, head_dim = common.heads(config)
    bias, norm = config.flag("attention_bias"), QKNorm(Norm(config.number("rms_norm_eps")), turned=True)
    rope = _rope(config, head_dim)
    return GQA(num_heads, num_kv_heads, head_dim, rope, qkv_bias=bias, out_bias=bias, qk_norm=norm)


def _rope(config: Config, head_dim: int) -> Rope:
    values = config.rope()
    alpha = values.pop("alpha", None)
    if values["rope_type"] != "dynamic" or not alpha:
        return rotary.rope(config, head_dim, values)
    if head_dim <= 2:
        raise ValueError(f"config.json: head_dim is {head_dim}, scaling by alpha needs 4 or more")
    theta = number("rope_theta", values["rope_theta"]) * number("alpha", alpha, low=1e-3, high=1e6) ** (
        head_dim / (head_dim - 2)
    )
    unused = {key: value for key, value in values.items() if key not in UNUSED}
    return rotary.rope(config, head_dim, {**unused, "rope_type": "default", "rope_theta": theta})


UNUSED = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # beside an alpha
