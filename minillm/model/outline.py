"""A model without what repeats: sums over its parameters take as long as its layers differ, not as they are many."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from minillm import spec
from minillm.model.decoder import Decoder, skeleton

NAMED = re.compile(r"layers\.([0-9]+)\.")


class Outline(NamedTuple):
    """A skeleton in which equal layers stand once, and of each of its layers the places that it has in the model."""

    spec: spec.Decoder  # of the model
    model: Decoder
    places: list[list[int]]

    def times(self, name: str) -> int:
        """How often the model has a parameter of the skeleton."""
        layer = self._layer(name)
        return 1 if layer is None else len(self.places[layer])

    def digits(self, name: str) -> int:
        """How many more digits the layers' numbers have in all of its names than if each had the skeleton's."""
        layer = self._layer(name)
        return 0 if layer is None else sum(len(str(each)) - len(str(layer)) for each in self.places[layer])

    def total(self, values: Mapping[str, int]) -> int:
        """The sum over the model of what each parameter of the skeleton has."""
        return sum(self.times(name) * value for name, value in values.items())

    def rules(self, rules: Mapping[str, str]) -> dict[str, str]:
        """A checkpoint's rules with the skeleton's numbers, where they name a layer by its own."""
        found, own = {}, {places[0]: at for at, places in enumerate(self.places)}
        for pattern, target in rules.items():
            number = NAMED.match(target)
            if number is None:
                found[pattern] = target
            elif int(number[1]) in own:
                layer, named = f"layers.{number[1]}.", f"layers.{own[int(number[1])]}."
                found[pattern.replace(layer, named)] = target.replace(layer, named)
        return found

    @property
    def last(self) -> int:
        """The layer of the skeleton that is the model's last."""
        return next(at for at, places in enumerate(self.places) if len(self.spec.layers) - 1 in places)

    def _layer(self, name: str) -> int | None:
        return int(name.split(".", 2)[1]) if name.startswith("layers.") else None


def outline(decoder: spec.Decoder, dtype: torch.dtype, whole: bool = False) -> Outline:
    """Of a model, or all of it, where each of its tensors is looked at, or where what layers share has names by the
    layer that holds it."""
    whole = whole or any(isinstance(layer.attention, spec.Fronted) for layer in decoder.layers)
    places: dict[tuple[spec.Layer, int], list[int]] = {}
    for index, layer in enumerate(decoder.layers):
        places.setdefault((layer, index if whole else 0), []).append(index)
    once = replace(decoder, layers=_renumbered(decoder, [layer for layer, _ in places]))
    return Outline(decoder, skeleton(once, dtype), list(places.values()))


def _renumbered(decoder: spec.Decoder, once: list[spec.Layer]) -> tuple[spec.Layer, ...]:
    """The layers, those that take something of another one naming it by its place among them."""
    found = []
    for layer in once:
        made = layer.attention
        if isinstance(made, spec.Fronted) and made.block.of is not None:
            block = replace(made.block, of=once.index(decoder.layers[made.block.of]))
            layer = replace(layer, attention=replace(made, block=block))
        if isinstance(made, spec.Attention) and made.lender is not None:
            layer = replace(layer, attention=made.borrowing(once.index(decoder.layers[made.lender])))
        found.append(layer)
    return tuple(found)
