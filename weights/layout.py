"""How the values of a checkpoint's tensor lie, where that is not how its parameter has them.

Written as an einops pattern from the tensor to the parameter's rows, with the sizes it cannot infer:

    (head part d) ... -> (part head d) ..., head=16 part=3

is a fused matrix that has q, k and v of one head after the other, for a parameter that has all of q first.

Or, where parts of several sizes alternate,

    16 x 128 128 256 -> parts

has 16 times 128 rows of the first part, 128 of the second and 256 of the third, for a parameter that has all of the
first part first. And

    4096 + (r k d) ... -> (k r d) ..., r=2 d=128

says so of the rows from the 4096th on; those before are as they are. What is there as "rows of length 1" is divided by
the length of each row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PARTS, UNIT = "parts", "rows of length 1"
AT_ONCE = 4096  # rows


@dataclass(frozen=True)
class Layout:
    """`stored` and `rows` are the two sides of the pattern."""

    stored: str
    rows: str
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def by_rows(self) -> bool:
        """Whether rows stay what they are and only change places: the last axis is the same one."""
        last = {side.rpartition(" ")[2] for side in (self.stored, self.rows)}
        return len(last) == 1 and re.fullmatch(r"\w+|\.\.\.", last.pop()) is not None

    @property
    def stacked(self) -> bool:
        """Whether it is one of a stack of matrices that stay in their order: `e (f two) h -> (e two f) h`."""
        axis = self.stored.partition(" ")[0]
        return re.fullmatch(r"\w+", axis) is not None and self.rows.startswith(f"({axis} ")

    @property
    def of_one(self) -> Layout | None:
        """The same for each of these matrices, `(f two) h -> (two f) h`; None where that is as it is."""
        axis, _, stored = self.stored.partition(" ")
        rows = re.sub(r"\((\w+)\)", r"\1", f"({self.rows.removeprefix(f'({axis} ')}")
        sizes = tuple(each for each in self.sizes if each[0] != axis)
        return None if rows == stored else Layout(stored, rows, sizes)

    def restore(self, rows: Tensor) -> Tensor:
        """The tensor that these rows would be stored as."""
        return rearrange(rows, f"{self.rows} -> {self.stored}", **dict(self.sizes))

    def shape(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor that fills rows of this shape."""
        return tuple(self.restore(torch.empty(rows, device="meta")).shape)

    def copy(self, tensor: Tensor, rows: Tensor) -> None:
        """Fill rows from a tensor. Both are looked at axis by axis, so that no copy is made in between."""
        axes = self.rows.replace("(", "").replace(")", "")
        sizes = dict(self.sizes)
        rearrange(rows, f"{self.rows} -> {axes}", **sizes).copy_(rearrange(tensor, f"{self.stored} -> {axes}", **sizes))


@dataclass(frozen=True)
class Alternating:
    """Rows that have `times` times one piece of each of the parts, whose sizes in rows are those of one piece."""

    times: int
    sizes: tuple[int, ...]
    by_rows: ClassVar[bool] = True
    stacked: ClassVar[bool] = False
    of_one: ClassVar[None] = None

    @property
    def stored(self) -> str:
        """As `parse` reads it."""
        return f"{self.times} x {' '.join(map(str, self.sizes))}"

    @property
    def rows(self) -> str:
        return PARTS

    def restore(self, rows: Tensor) -> Tensor:
        """The tensor that these rows would be stored as."""
        return torch.cat(self._pieces(rows), dim=1).flatten(0, 1)

    def shape(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor that fills rows of this shape."""
        return rows

    def copy(self, tensor: Tensor, rows: Tensor) -> None:
        """Fill rows from a tensor."""
        stored = tensor.unflatten(0, (self.times, -1)).split(self.sizes, dim=1)
        for piece, into in zip(stored, self._pieces(rows), strict=True):
            into.copy_(piece)

    def _pieces(self, rows: Tensor) -> list[Tensor]:
        """Of each part a view `[times, size, ...]`."""
        parts = rows.split([self.times * size for size in self.sizes])
        return [part.unflatten(0, (self.times, -1)) for part in parts]


@dataclass(frozen=True)
class Behind:
    """Rows from `start` on lie by a layout that moves whole rows; those before are as they are."""

    start: int
    layout: Layout
    by_rows: ClassVar[bool] = True
    stacked: ClassVar[bool] = False
    of_one: ClassVar[None] = None

    @property
    def stored(self) -> str:
        """As `parse` reads it."""
        return f"{self.start} + {self.layout.stored}"

    @property
    def rows(self) -> str:
        return self.layout.rows

    def restore(self, rows: Tensor) -> Tensor:
        """The tensor that these rows would be stored as."""
        return torch.cat((rows[: self.start], self.layout.restore(rows[self.start :])))

    def shape(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor that fills rows of this shape."""
        return rows

    def copy(self, tensor: Tensor, rows: Tensor) -> None:
        """Fill rows from a tensor."""
        rows[: self.start].copy_(tensor[: self.start])
        self.layout.copy(tensor[self.start :], rows[self.start :])


@dataclass(frozen=True)
class UnitRows:
    """Rows whose length is 1 for the model, whatever it is in the file."""

    stored: ClassVar[str] = "rows of any length"
    rows: ClassVar[str] = UNIT
    by_rows: ClassVar[bool] = False
    stacked: ClassVar[bool] = False
    of_one: ClassVar[None] = None

    def restore(self, rows: Tensor) -> Tensor:
        """A tensor that these rows can be stored as: their own."""
        return rows

    def shape(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor that fills rows of this shape."""
        return rows

    def copy(self, tensor: Tensor, rows: Tensor) -> None:
        """Fill rows from a tensor."""
        for start in range(0, len(tensor), AT_ONCE):
            rows[start : start + AT_ONCE] = F.normalize(tensor[start : start + AT_ONCE].float(), dim=-1)


AnyLayout = Layout | Alternating | Behind | UnitRows


def parse(text: str) -> AnyLayout:
    """A layout as it is written."""
    if text == UNIT:
        return UnitRows()
    start, plus, behind = text.partition(" + ")
    if plus:
        layout = parse(behind)
        assert isinstance(layout, Layout)
        return Behind(int(start), layout)
    pattern, _, sizes = text.partition(", ")
    stored, rows = pattern.split(" -> ")
    if rows == PARTS:
        times, _, each = stored.partition(" x ")
        return Alternating(int(times), tuple(map(int, each.split())))
    named = (size.split("=") for size in sizes.split())
    return Layout(stored, rows, tuple((name, int(size)) for name, size in named))
