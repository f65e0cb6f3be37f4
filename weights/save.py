"""The way back: a model's parameters as the tensors of a published checkpoint, by the same table read backwards."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from minillm.weights.rules import DROP, Destination, Rules, joined, rows, units


def published(rules: Rules, destinations: Mapping[str, Destination]) -> dict[str, Destination]:
    """The names of a checkpoint's tensors and the rows that each is made of; of several names the first rule's."""
    found, left, known = dict[str, Destination](), set(destinations), units(destinations)
    for pattern, target in rules.items():
        if target.startswith(DROP):
            continue
        expression = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[0-9]+)", re.escape(target.partition(": ")[0])))
        for unit, parts in known.items():
            if (match := expression.fullmatch(unit)) and left.issuperset(parts):
                left.difference_update(parts)
                named = target.format(**match.groupdict())
                found[pattern.format(**match.groupdict())] = joined(named, known, destinations)
    assert not left, left
    return found


def save(path: Path, parameters: Mapping[str, Tensor], rules: Rules, destinations: Mapping[str, Destination]) -> None:
    """Write one safetensors file in the layout that `rules` reads; complete or not at all."""
    tensors = {}
    for name, to in published(rules, destinations).items():
        made = rows(parameters[to.parameter], to)
        tensors[name] = (made if to.layout is None else to.layout.restore(made)).contiguous()
    partial = path.with_name(path.name + ".partial")
    partial.touch()
    readable = partial.stat().st_mode  # what the umask gives; the library makes its files private
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(readable)
    os.replace(partial, path)
