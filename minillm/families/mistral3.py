"""Llama, except: all that Mistral changes, or Ministral 3.

The text model of Mistral Small 3.1 and 3.2, 24B, of Ministral 3, and of what is made of them (Mistral AI, 2025): images
are not read, and their tensors are left out. Mistral Small 4 has the same `model_type` around another text model, which
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.families import ministral3, mistral
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
spec = ministral3.spec
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    found, section = wrapped.inner(values), values.get("text_config") or {}
    if (kind := section.get("model_type", "mistral")) not in ("mistral", "ministral3"):
        raise ValueError(f"config.json: text_config.model_type is {shown(kind)}; mistral3 is read around mistral and "
                         "ministral3 only")  # fmt: skip
    if kind == "mistral":
        scaling = found.get("rope_scaling") or found.get("rope_parameters")
        if isinstance(scaling, dict) and scaling.get("llama_4_scaling_beta"):
            raise ValueError("config.json: llama_4_scaling_beta in a text_config of model_type mistral, which has none")
        return found
    silent = not any(found.get(key) for key in ROPE_KEYS)
    own = {key: value for key, value in ministral3.DEFAULTS.items() if silent or key not in ROPE_KEYS}
    return {**own, **found}
