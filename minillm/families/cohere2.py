"""Llama, except: all that Command-R changes, and three of four layers have a window; the fourth sees everything, and
turns nothing.

Command-R7B, Command-A, Tiny Aya (Cohere, 2024 to 2026).
"""

from __future__ import annotations

from minillm.config import MAX_POSITIONS, Config
from minillm.families import cohere
from minillm.families.shared import common
from minillm.spec import Decoder, LayerNorm

DEFAULTS = {
    **{key: value for key, value in cohere.DEFAULTS.items() if key != "use_qk_norm"},
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_types": None,
}
RULES = common.DENSE_RULES


def spec(config: Config) -> Decoder:
    layers, span = common.num_layers(config), config.size("sliding_window_pattern")
    window = config.size("sliding_window", MAX_POSITIONS)
    windows = common.typed_windows(config, window, [(i + 1) % span != 0 for i in range(layers)])
    attention = cohere.mixer(config)
    mixers = common.in_layers(attention, windows, [attention.rope if each else None for each in windows])
    return cohere.parallel(config, mixers, LayerNorm(config.number("layer_norm_eps"), bias=False))
