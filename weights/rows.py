"""Rows of a model's parameters as plain numbers, read from whatever tensors of a checkpoint hold them, model or no."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from minillm.weights.checkpoint import Checkpoint, Stored
from minillm.weights.formats.packed import Made
from minillm.weights.load import BLOCK_VALUES, check_finite, laid
from minillm.weights.rules import Destination, Plan
from minillm.weights.tensorfile import blocks


class Rows:
    """What fills the parameters of a plan, in fp32. Of tensors that are quantised, or lie otherwise than their rows,
    one is in memory whole, while its rows are asked for one after the other; this project's own integers are
    dequantised a block of rows at a time."""

    def __init__(self, checkpoint: Checkpoint, planned: Plan):
        self.checkpoint, self.planned = checkpoint, planned
        self.parts: dict[str, list[tuple[Destination, str]]] = {}
        for name, to in planned.assignments.items():
            self.parts.setdefault(to.parameter, []).append((to, name))
        for parts in self.parts.values():
            parts.sort(key=lambda part: part[0].start)
        self._kept: tuple[str, Tensor] | None = None

    def pieces(self, wanted: Destination) -> Iterator[Tensor]:
        """The rows of a parameter that a destination is, in order: fp32 `[some, …]`. Its layout is not looked at."""
        first, last = wanted.start, wanted.start + wanted.shape[0]
        for to, name in self.parts[wanted.parameter]:
            start, stop = max(first, to.start) - to.start, min(last, to.start + to.shape[0]) - to.start
            if start < stop:
                yield from self._of_tensor(name, to, start, stop)

    def _of_tensor(self, name: str, to: Destination, first: int, last: int) -> Iterator[Tensor]:
        width, made, stored = math.prod(to.shape[1:]), self._laid(name, to), self.checkpoint.stored[name].fresh()
        for start, stop in blocks(last - first, max(BLOCK_VALUES // width, 1)):
            place = first + start, first + stop
            yield numbers(stored, to, *place) if made is None else checked(made[slice(*place)], to)

    def _laid(self, name: str, to: Destination) -> Tensor | None:
        """All rows that a tensor fills, where they are not its own."""
        if self._kept is None or self._kept[0] != name:
            made = laid(self.checkpoint.stored[name].fresh(), to)
            if made is None:
                return None
            self._kept = name, made
        return self._kept[1]


def numbers(stored: Stored, to: Destination, first: int, last: int) -> Tensor:
    """Rows of a tensor that lie as they do in the parameter: fp32 `[last - first, …]`."""
    if isinstance(stored, Made) and stored.packed.of_width and stored.form:
        return checked(stored.form.values(stored.fields(first, last)), to)
    width = math.prod(to.shape[1:])
    return checked(stored.values(first * width, last * width), to)


def checked(values: Tensor, to: Destination) -> Tensor:
    """Rows of a parameter in fp32. Raises ValueError for values that are not finite."""
    check_finite(to.parameter, values)
    return values.view(-1, *to.shape[1:]).float()
