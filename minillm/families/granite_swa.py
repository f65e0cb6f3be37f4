"""Llama, except: all that Granite changes; three of four layers have a window; each head has a sink; layers may have a
rotary base of their own, or no rotation.

Granite Swash 2B (IBM, 2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minillm.config import Config, number
from minillm.families import granite
from minillm.families.shared import common, rotary
from minillm.guard.screen import shown
from minillm.spec import GQA, Decoder, Rope

WINDOWS = {"sliding_window": 128, "layer_types": None, "layer_rope_theta": None}
DEFAULTS = {
    **granite.DEFAULTS,
    **WINDOWS,
    "vocab_size": 100352,
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SINKS = {"model.layers.{i}.self_attn.sinks": "layers.{i}.attention.sinks"}
RULES = {**granite.RULES, **SINKS}


def spec(config: Config) -> Decoder:
    return windowed(config, granite.spec(config))


def windowed(config: Config, made: Decoder) -> Decoder:
    """The decoder with windows, sinks and a speed of rotation for each layer."""
    layers = len(made.layers)
    windows = common.typed_windows(config, common.window(config), [i % 4 != 0 for i in range(layers)])
    attention = made.attentions[0]
    assert isinstance(attention, GQA)
    mixers = common.in_layers(replace(attention, weakened="sinks"), windows, _ropes(config, layers))
    return replace(
        made, layers=tuple(replace(layer, attention=each) for layer, each in zip(made.layers, mixers, strict=True))
    )


def _ropes(config: Config, layers: int) -> Sequence[Rope | None]:
    """By `layer_rope_theta`, of which 0 turns nothing."""
    head_dim, listed = common.heads(config)[2], config.get("layer_rope_theta")
    if listed is None:
        return [rotary.rope(config, head_dim)] * layers
    if not isinstance(listed, list) or len(listed) != layers:
        raise ValueError(f"config.json: layer_rope_theta is {shown(listed)}, expected a number for each layer")
    thetas = [number("layer_rope_theta", each, low=0.0) for each in listed]
    values = config.rope()
    return [rotary.rope(config, head_dim, {**values, "rope_theta": each}) if each else None for each in thetas]
