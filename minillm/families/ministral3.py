"""Llama, except: all that Mistral changes, and YaRN stretches positions, without a factor on cos and sin as published,
and a query grows with the logarithm of how many original contexts lie before it.

Ministral 3 3B, 8B, 14B, Devstral 2 (Mistral AI, 2025), by themselves or inside a model that also reads images.
"""

from __future__ import annotations

from minillm.config import Config, number, same
from minillm.families import mistral
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, Rope, Scores, Temperature, YarnScaling

ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
DEFAULTS = {
    **mistral.DEFAULTS,
    "vocab_size": 131072,
    "num_hidden_layers": 34,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "rope_parameters": ROPE,
    "sliding_window": None,
}
RULES = mistral.RULES


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope, temperature = positions(config, head_dim)
    attention = GQA(
        num_heads, num_kv_heads, head_dim, rope, common.window(config), scores=Scores(temperature=temperature)
    )
    return common.dense(config, [attention] * common.num_layers(config))


def positions(config: Config, head_dim: int, part: float | None = None) -> tuple[Rope, Temperature | None]:
    """What turns `head_dim` values, which are this part of a query's, and what queries are multiplied with."""
    values = config.rope()
    if part is not None:
        same({"the rotary part of a query": part, "partial_rotary_factor": values.pop("partial_rotary_factor", None)})
    values.pop("max_position_embeddings", None)  # the config's own, once more
    rate = values.pop("llama_4_scaling_beta", None)
    rope = rotary.rope(config, head_dim, values)
    if rate is None:
        return rope, None
    scaling = rope.scaling
    original = scaling.original_positions if isinstance(scaling, YarnScaling) else None
    span = original or config.positions("max_position_embeddings")
    return rope, Temperature(number("llama_4_scaling_beta", rate), span)
