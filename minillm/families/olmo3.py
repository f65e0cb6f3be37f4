"""Llama, except: all that OLMo 2 changes; three layers with a window, then one without, and only the latter's rotary
embedding is scaled.

Olmo 3 7B, 32B, Olmo 3.1 (Allen Institute for AI, 2025).
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import olmo2
from minillm.families.shared import common, rotary
from minillm.spec import Decoder

DEFAULTS = {**olmo2.DEFAULTS, "rope_theta": 500000.0, "sliding_window": 4096, "layer_types": None}
RULES = olmo2.RULES


def spec(config: Config) -> Decoder:
    sliding = [(i + 1) % 4 != 0 for i in range(common.num_layers(config))]
    windows = common.typed_windows(config, common.window(config), sliding)
    ropes = rotary.by_window(config, common.heads(config)[2], windows, config.get("rope_theta"))
    return olmo2.decoder(config, windows, ropes)
