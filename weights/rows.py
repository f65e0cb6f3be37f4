"""Rows of a model's parameters as plain numbers, read from whatever tensors of a checkpoint hold them, model or no."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from minillm.weights.checkpoint import Checkpoint
from minillm.weights.ints import Int4, Int8
from minillm.weights.load import BLOCK_VALUES, check_finite, laid
from minillm.weights.rules import Destination, Plan
from minillm.weights.tensorfile import blocks


class Rows:
    """What fills the parameters of a plan, in fp32. `held` has the format and the columns of those that are integers,
    which are dequantised a block of rows at a time. Of other tensors that are quantised, or lie otherwise than their
    rows, one is in memory whole, while its rows are asked for one after the other."""

    def __init__(self, checkpoint: Checkpoint, planned: Plan, held: Mapping[str, tuple[Int8 | Int4, int]]):
        self.checkpoint, self.planned, self.held = checkpoint, planned, held
        self.parts: dict[str, list[tuple[Destination, str]]] = {}
        for name, to in planned.assignments.items():
            self.parts.setdefault(to.parameter, []).append((to, name))
        for parts in self.parts.values():
            parts.sort(key=lambda part: part[0].start)
        self._kept: tuple[str, Tensor] | None = None

    def pieces(self, wanted: Destination) -> Iterator[Tensor]:
        """The rows of a parameter that a destination is, in order: fp32 `[some, …]`. Its layout is not looked at."""
        first, count = wanted.start, wanted.shape[0]
        if wanted.parameter not in self.held:
            for piece in self._read(wanted.parameter, first, first + count):
                yield piece.float()
            return
        form, columns = self.held[wanted.parameter]
        for start, stop in blocks(count, max(BLOCK_VALUES // columns, 1)):
            place = first + start, first + stop
            names = {ending: f"{wanted.parameter}{ending}" for ending in form.parts((1, 1))}
            parts = {ending: torch.cat(list(self._read(name, *place))) for ending, name in names.items()}
            yield form.dequantise(parts, columns, torch.float32)

    def _read(self, parameter: str, first: int, last: int) -> Iterator[Tensor]:
        """Rows first … last - 1 in their own type."""
        for to, name in self.parts[parameter]:
            start, stop = max(first, to.start) - to.start, min(last, to.start + to.shape[0]) - to.start
            if start < stop:
                yield from self._of_tensor(name, to, start, stop)

    def _of_tensor(self, name: str, to: Destination, first: int, last: int) -> Iterator[Tensor]:
        width, made, stored = math.prod(to.shape[1:]), self._laid(name, to), self.checkpoint.stored[name].fresh()
        for start, stop in blocks(last - first, max(BLOCK_VALUES // width, 1)):
            place = first + start, first + stop
            values = stored.values(place[0] * width, place[1] * width) if made is None else made[slice(*place)]
            if values.is_floating_point():
                check_finite(to.parameter, values)
            yield values.view(-1, *to.shape[1:])

    def _laid(self, name: str, to: Destination) -> Tensor | None:
        """All rows that a tensor fills, where they are not its own."""
        if self._kept is None or self._kept[0] != name:
            made = laid(self.checkpoint.stored[name].fresh(), to)
            if made is None:
                return None
            self._kept = name, made
        return self._kept[1]
