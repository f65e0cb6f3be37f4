"""What of a checkpoint sees pictures, or hears sounds, in the words of its family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm import families
from minillm.config import Config
from minillm.families.shared import on_device
from minillm.spec.media import Media
from minillm.weights.rules import Rules

SECTIONS = ("vision_config", "audio_config")
PARTS = tuple(f"{each}." for each in on_device.TOWERS)


def media(values: Mapping[str, Any]) -> tuple[Media, Rules, Config] | None:
    """What a config.json says of it, the rules of its tensors, and the values that tell what keys nobody understood;
    None where there is nothing of the kind, or nothing that is supported."""
    family, _ = families.read(values)
    there = any(values.get(name) is not None for name in SECTIONS)
    if not there or not hasattr(family, "media"):
        return None
    found: tuple[Media, Rules, Config] | None = family.media(values, families.resolve(values)[0])
    return found


def is_part(tensor: str) -> bool:
    """Whether a tensor is of it, by its name."""
    return tensor.removeprefix("model.").startswith(PARTS)
