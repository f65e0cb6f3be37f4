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
        """Whether rows stay what they are and only change places."""
        return all(re.fullmatch(r"\([^()]*\) \.\.\.", side) for side in (self.stored, self.rows))

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
