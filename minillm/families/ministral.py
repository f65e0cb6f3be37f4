"""Llama, except: all that Mistral changes, but `layer_types` says which layers have the window.

Ministral-8B-Instruct-2410 (Mistral AI, 2024): one layer in four has none.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import mistral
from minillm.families.shared import common
from minillm.spec import GQA, Decoder

DEFAULTS = {**mistral.DEFAULTS, "layer_types": None}
RULES = mistral.RULES


def spec(config: Config) -> Decoder:
    made, window = mistral.spec(config), common.window(config)
    windows = common.typed_windows(config, window, [True] * len(made.layers))
    attention = made.attentions[0]
    assert isinstance(attention, GQA)
    return common.dense(config, common.in_layers(attention, windows, [attention.rope] * len(windows)))
