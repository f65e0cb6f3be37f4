"""The way back: a model's parameters as the tensors of a published checkpoint, by the same table read backwards."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from minillm.weights.rules import DROP, Destination, Rules, rows


def published_names(rules: Rules, destinations: Mapping[str, Destination]) -> dict[str, str]:
    """Destination -> the name that a checkpoint gives the tensor that fills it."""
    found: dict[str, str] = {}
    for pattern, target in rules.items():
        if target.startswith(DROP):
            continue
        expression = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[0-9]+)", re.escape(target)))
        for destination in destinations:
            if match := expression.fullmatch(destination):
                found.setdefault(destination, pattern.format(**match.groupdict()))
    assert found.keys() == destinations.keys(), destinations.keys() - found.keys()
    return found


def save(path: Path, parameters: Mapping[str, Tensor], rules: Rules, destinations: Mapping[str, Destination]) -> None:
    """Write one safetensors file in the layout that `rules` reads; complete or not at all."""
    tensors = {}
    for destination, name in published_names(rules, destinations).items():
        to = destinations[destination]
        tensors[name] = rows(parameters[to.parameter], to).contiguous()
    partial = path.with_name(path.name + ".partial")
    partial.touch()
    readable = partial.stat().st_mode  # what the umask gives; the library makes its files private
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(readable)
    os.replace(partial, path)
