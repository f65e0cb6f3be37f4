"""How the values of a checkpoint's tensor lie, where that is not how its parameter has them.

Written as an einops pattern from the tensor to the parameter's rows, with the sizes it cannot infer:

    (head part d) ... -> (part head d) ..., head=16 part=3

is a fused matrix that has q, k and v of one head after the other, for a parameter that has all of q first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """`stored` and `rows` are the two sides of the pattern."""

    stored: str
    rows: str
    sizes: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Layout:
        pattern, _, sizes = text.partition(", ")
        stored, rows = pattern.split(" -> ")
        named = (size.split("=") for size in sizes.split())
        return cls(stored, rows, tuple((name, int(size)) for name, size in named))

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
