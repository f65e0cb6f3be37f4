"""One file per family: what a config means (`spec`), what absent keys mean (`DEFAULTS`), what tensors fill (`RULES`).

The name of a family appears in this folder and nowhere else in the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import llama, mistral, qwen2, qwen3
from minillm.spec import Decoder
from minillm.weights.rules import DROP, Rules

FAMILIES = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3}  # by the config's model_type


def resolve(values: Mapping[str, Any]) -> tuple[Decoder, Rules, Config]:
    """The spec and the weight rules of a config.json; the `Config` tells what keys nobody understood.

    Raises ValueError for a model_type that no family claims, and for values that cannot be.
    """
    kind = values.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise ValueError(f"config.json: model_type {kind!r} is not supported; supported are {', '.join(FAMILIES)}")
    config = Config(values, family.DEFAULTS)
    decoder = family.spec(config)
    # A tied head has no tensor of its own; some checkpoints store the copy all the same.
    rules = {**family.RULES, "lm_head.weight": DROP} if decoder.tied else family.RULES
    return decoder, rules, config
