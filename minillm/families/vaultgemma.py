"""Llama, except: all that Gemma 2 changes but the norms behind attention and MLP.

VaultGemma 1B (Google, arXiv:2510.15001), trained with differential privacy.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import gemma2
from minillm.families.shared import common
from minillm.spec import Decoder

DEFAULTS = gemma2.DEFAULTS
RULES = {name: target for name, target in gemma2.RULES.items() if ".post_" not in target}


def spec(config: Config) -> Decoder:
    return common.every_layer(gemma2.spec(config), post_attention_norm=None, post_ffn_norm=None)
