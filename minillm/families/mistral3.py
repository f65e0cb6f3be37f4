"""Llama, except: all that Mistral changes.

The text model of Mistral Small 3.1 and 3.2, 24B, and of what is made of them (Mistral AI, 2025): images are not read,
and their tensors are left out. Ministral 3 and Mistral Small 4 have the same `model_type` around other text models,
which are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.families import mistral
from minillm.families.shared import wrapped
from minillm.guard.screen import shown

DEFAULTS = {
    **mistral.DEFAULTS,
    "vocab_size": 131072,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000000.0,
    "sliding_window": None,
}
RULES = wrapped.rules(mistral.RULES)
TRANSFORMERS = wrapped.TRANSFORMERS
spec = mistral.spec


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    found, section = wrapped.inner(values), values.get("text_config") or {}
    if (kind := section.get("model_type", "mistral")) != "mistral":
        raise ValueError(f"config.json: text_config.model_type is {shown(kind)}; mistral3 is read around mistral only")
    return found
