"""Llama, except: all that DeepSeek-V3 changes.

The text model of Kimi-K2.5, K2.6, K2.7-Code (Moonshot AI, 2026), which is Kimi-K2: images are not read, and their
tensors are left out. Published with experts of four bits.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import deepseek_v3
from minillm.families.shared import wrapped

DEFAULTS = deepseek_v3.DEFAULTS
TRANSFORMERS = wrapped.TRANSFORMERS
inner, spec = wrapped.inner, deepseek_v3.spec


def rules(config: Config) -> dict[str, str]:
    return wrapped.rules(deepseek_v3.rules(config))


def prediction_layers(config: Config) -> dict[str, dict[str, tuple[int, ...]]]:
    return {f"language_model.{layer}": own for layer, own in deepseek_v3.prediction_layers(config).items()}
