"""A rank's share of a checkpoint: of each tensor the rows and columns that it holds, and nothing else is read.

A part of a row is a read of its own, so that what others hold never comes into memory. Tensors that lie otherwise than
their parameter, and those whose values have to be made (`source.Kept`), are read whole.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minillm.parallel.kept import Kept
from minillm.parallel.split import Span
from minillm.weights.checkpoint import Checkpoint, Stored
from minillm.weights.forms import Packing
from minillm.weights.fp8 import Fp8
from minillm.weights.grouped import Fields, Grouped
from minillm.weights.rules import Destination, Plan
from minillm.weights.source import InFile
from minillm.weights.source import Kept as Made


def taken(checkpoint: Checkpoint, planned: Plan, wanted: Mapping[str, Kept]) -> tuple[Checkpoint, Plan]:
    """A checkpoint of which only the wanted rows and columns are there, and where these go."""
    found, zeros = dict[str, tuple[Any, Destination]](), []
    for tensor, to in planned.assignments.items():
        stored, part = checkpoint.stored[tensor], wanted.get(to.parameter)
        if part is None:
            found[tensor] = stored, to
        elif part.absent:
            zeros.append(to)
        elif (share := _share(stored, to, part)) is not None:
            found[tensor] = share
    return _only(checkpoint, planned, found, zeros)


def _only(
    checkpoint: Checkpoint, planned: Plan, found: Mapping[str, tuple[Any, Destination]], zeros: list[Destination]
) -> tuple[Checkpoint, Plan]:
    """The two with these tensors alone, and where they go; the rest that is wanted is zero."""
    made, plan = copy.copy(checkpoint), copy.copy(planned)
    made.stored = {tensor: stored for tensor, (stored, _) in found.items()}
    made.nbytes = sum(each.nbytes for each in made.stored.values())
    plan.assignments, plan.zeros = {tensor: to for tensor, (_, to) in found.items()}, [*planned.zeros, *zeros]
    return made, plan


def staged(
    checkpoint: Checkpoint, planned: Plan, called: Callable[[str], str | None], hidden_size: int | None
) -> tuple[Checkpoint, Plan]:
    """A checkpoint of which only what a stage has is there, by its own names (`stages.name`). A stage that has no
    embedding is given one without rows, of so many values each."""
    found = dict[str, tuple[Any, Destination]]()
    for tensor, to in planned.assignments.items():
        if (own := called(to.parameter)) is not None:
            found[tensor] = checkpoint.stored[tensor], replace(to, parameter=own)
    nothing = [] if hidden_size is None else [Destination("embedding.weight", 0, (0, hidden_size))]
    return _only(checkpoint, planned, found, nothing)


def _share(stored: Stored, to: Destination, part: Kept) -> tuple[Any, Destination] | None:
    """What is read of a tensor, and the rows of a rank's parameter that it fills; None where that is nothing."""
    end = to.start + to.shape[0]
    rows = [(0, end)] if part.rows is None else part.rows
    spans = [(max(first, to.start) - to.start, min(last, end) - to.start) for first, last in rows]
    spans = [(first, last) for first, last in spans if first < last]
    if not spans:
        return None
    start = sum(min(last, to.start) - first for first, last in rows if first < to.start)
    width = to.shape[1:] if part.columns is None else (part.columns[1] - part.columns[0],)
    shape = (sum(last - first for first, last in spans), *width)
    made = Piece(Laid(stored, to) if to.layout is not None else stored, spans, part.columns, shape, to.shape)
    return made, replace(to, start=start, shape=shape, layout=None, whole=None)


class Laid(Made):
    """A tensor as its parameter has it, where it lies otherwise."""

    def __init__(self, stored: Stored, to: Destination):
        self.stored, self.to, self.dtype, self.nbytes = stored, to, stored.dtype, stored.nbytes
        self.title = getattr(stored, "title", None)
        super().__init__()

    def fresh(self) -> Laid:
        return Laid(self.stored.fresh(), self.to)

    def _read(self) -> Tensor:
        made = torch.empty(self.to.shape, dtype=self.dtype, device="cpu")
        assert self.to.layout is not None
        self.to.layout.copy(self.stored.values().view(self.stored.shape), made)
        return made.flatten()


class Piece:
    """Rows of a tensor, or columns of all rows, with the methods of `source.InFile`."""

    def __init__(
        self, stored: Any, spans: Sequence[Span], columns: Span | None, shape: tuple[int, ...], whole: tuple[int, ...]
    ):
        self.stored, self.spans, self.columns, self.shape, self.whole = stored, spans, columns, shape, whole
        self.dtype: torch.dtype = stored.dtype
        self.title: str | None = getattr(stored, "title", None)
        exact = isinstance(stored, InFile)
        self.nbytes: int = math.prod(shape) * stored.dtype.itemsize if exact else stored.nbytes

    def fresh(self) -> Piece:
        """The same, nothing of which has been read."""
        return Piece(self.stored.fresh(), self.spans, self.columns, self.shape, self.whole)

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start … stop - 1."""
        made = torch.empty((math.prod(self.shape) if stop is None else stop) - start, dtype=self.dtype, device="cpu")
        self.fill(made, start)
        return made

    def fill(self, into: Tensor, start: int = 0) -> None:
        """Read into a contiguous tensor of this type on the CPU, which says how many values from `start` on."""
        flat, at = into.view(-1), 0
        for place, count in self._pieces(start, start + flat.numel()):
            piece = flat[at : at + count]
            if isinstance(self.stored, InFile):
                self.stored.fill(piece, place)
            else:
                piece.copy_(self.stored.values(place, place + count))
            at += count

    def _pieces(self, start: int, stop: int) -> Iterator[Span]:
        """Where in the tensor values start … stop - 1 lie: the first of a run, and how many."""
        width = math.prod(self.whole[1:])
        if self.columns is not None:
            first, own = self.columns[0], self.shape[-1]
            for row in range(start // own, -(-stop // own)):
                low, high = max(start - row * own, 0), min(stop - row * own, own)
                yield (row + self.spans[0][0]) * width + first + low, high - low
            return
        for first, last in self._within(start, stop, width):
            yield first, last - first

    def _within(self, start: int, stop: int, each: int = 1) -> Iterator[Span]:
        """Where start … stop - 1 of the spans, one behind the other, lie in the tensor, of `each` values a row."""
        at = 0
        for first, last in self.spans:
            low, high = max(start - at, 0), min(stop - at, (last - first) * each)
            if low < high:
                yield first * each + low, first * each + high
            at += (last - first) * each

    @property
    def form(self) -> Packing | None:
        """What the rows can stay in: what those of the tensor can, where columns are cut between groups."""
        form: Packing | None = getattr(self.stored, "form", None)
        if form is None or self.columns is None:
            return form
        if not isinstance(form, (Grouped, Fp8)) or getattr(self.stored, "order", None) is not None:
            return None
        units, last = _units(form), self.whole[-1]
        fits = all(each % unit == 0 or each == last for unit in units if unit for each in self.columns)
        return form if fits else None

    @property
    def order(self) -> Tensor | None:
        return getattr(self.stored, "order", None)

    def fields(self, start: int, stop: int) -> Fields:
        """Rows start … stop - 1 as they go into the form, or into that of plain rows beside them."""
        width = math.prod(self.shape[1:])
        if (form := self.form) is None:
            return Fields(self.values(start * width, stop * width).view(-1, width))
        made = Fields.stacked([self.stored.fields(*span) for span in self._within(start, stop)])
        return made if self.columns is None else made.apart().columns(*self.columns, *(_units(form) * 2)[:2])


def _units(form: Any) -> tuple[int, ...]:
    """How many inputs share a factor, of each kind; 0 is all."""
    return (form.width,) if isinstance(form, Fp8) else (form.group, form.span)
