"""Integers with factors: what quantising a plain matrix W `[O, I]` on load gives.

    int8   W[o, i] = q[o, i] s[o]
    int4   W[o, i] = (q[o, i] - z[o, i / g]) s[o, i / g] f[o]

Int4 keeps q from 0 to 15, two in a byte: value 2j of a row in the low half of its byte j and 2j + 1 in the high half. A
group of g values of a row has a factor s of its own, itself an int8, in units of the row's f (as QLoRA's double
quantisation, arXiv:2305.14314, and llama.cpp's k-quants), and z = 8, or a whole number of its own. Groups of 16 then
cost no more than groups of 32 with a 16-bit factor: 4 + 8 / 16 bits, and 32 for each row.

The parts of a held matrix are q, called as the matrix itself, and its companions, called the same and "_scale" (s),
"_factor" (f) and "_zero" (z).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.weights.forms import Looked

Parts = Mapping[str, Tensor]  # what a part adds to the name of the matrix -> its values
COMPANIONS = ("_scale", "_factor", "_zero")
DTYPES = (torch.int8, torch.uint8)  # of q
GROUP = 16
MAX_GROUP = 4096
CLIPPED = (0.8, 0.9, 1.0)  # shares of a group's largest value that its range may end at


@dataclass(frozen=True)
class Int8(Looked):
    """One byte for a value and 32 bits for a row. The error of a value is half of its row's factor at most."""

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each part of matrices `[..., O, I]`; what a row has one of lies in one dimension."""
        return {"": (shape, torch.int8), "_scale": ((math.prod(shape[:-1]),), torch.float32)}

    def quantise(self, rows: Tensor) -> dict[str, Tensor]:
        """The parts of fp32 `[O, I]`: s is the largest magnitude of a row over 127."""
        scale = rows.abs().amax(-1) / 127
        return {"": (rows * _inverse(scale)[:, None]).round_().to(torch.int8), "_scale": scale}

    def dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        """`[..., I]` of q `[..., I]` and s `[...]`, computed in fp32."""
        return (parts[""].float() * parts["_scale"][..., None]).to(dtype)


@dataclass(frozen=True)
class Int4(Looked):
    """Half a byte for a value, one byte (two, if not symmetric) for a group and 32 bits for a row."""

    group: int = GROUP
    symmetric: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.group, bool) or not isinstance(self.group, int) or not 1 <= self.group <= MAX_GROUP:
            raise ValueError(f"the group size is {self.group!r}, it must be a whole number from 1 to {MAX_GROUP}")

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each part of matrices `[..., O, I]`; what a row has one of lies in one dimension."""
        *rows, columns = shape
        groups = (*rows, -(-columns // self.group))
        found = {"": ((*rows, -(-columns // 2)), torch.uint8), "_scale": (groups, torch.int8)}
        zero = {} if self.symmetric else {"_zero": (groups, torch.uint8)}
        return {**found, "_factor": ((math.prod(rows),), torch.float32), **zero}

    def quantise(self, rows: Tensor) -> dict[str, Tensor]:
        """The parts of fp32 `[O, I]`.

        Of a few ranges for a group, each cut off at some share of its largest value (GPTQ, arXiv:2210.17323, searches
        so in its code), the one of least squared error is kept once its factor is the best for the numbers that it
        gives, s = d·x / d·d with d = q - z (llama.cpp's make_qx_quants): the error is then x·x - (d·x)² / d·d.
        """
        x = _grouped(rows, self.group)
        best = scale = x.new_zeros(x.shape[1])
        zero, steps, products = torch.full_like(scale, 8), torch.empty_like(x), torch.empty_like(x)
        for inverse, middle in self._ranges(x):
            _steps(x, inverse, middle, steps)
            dot = _total(torch.mul(steps, x, out=products)).clone()
            square = _total(torch.mul(steps, steps, out=products))
            fitting = dot / square.clamp_(min=1)  # d is whole: only where all of it is 0 is there less
            better = (gain := dot.mul_(fitting)) > best
            best, scale = torch.where(better, gain, best), torch.where(better, fitting, scale)
            zero = zero if self.symmetric else torch.where(better, middle, zero)
        scale = scale.view(len(rows), -1)
        factor = scale.abs().amax(1) / 127
        codes = (scale * _inverse(factor)[:, None]).round_()
        inverse = _inverse((codes * factor[:, None]).flatten())
        q = _steps(x, inverse, zero, steps).add_(zero).to(torch.uint8)
        found = {"": _packed(q, len(rows), rows.shape[1]), "_scale": codes.to(torch.int8), "_factor": factor}
        return found if self.symmetric else {**found, "_zero": zero.to(torch.uint8).view(len(rows), -1)}

    def _ranges(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inverses of factors, and zeros, to try for groups `[g, N]`. Symmetric, the largest value is given to the side
        of 8 numbers or to that of 7; else the range reaches from the least to the largest, over 0."""
        high, low = x.amax(0), x.amin(0)
        if self.symmetric:
            inverse, zero = _inverse(torch.where(high > -low, high, low)), torch.full_like(high, 8)
            for share in CLIPPED:
                yield inverse * (-8 / share), zero
                yield inverse * (7 / share), zero
            return
        low, high = low.clamp(max=0), high.clamp(min=0)
        inverse = _inverse(high - low) * 15
        for share in CLIPPED:
            yield inverse / share, (-low * inverse).round()

    def dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        """`[..., I]` of q `[..., I / 2]`, s and z `[..., I / g]` and f `[...]`, computed in fp32."""
        q = torch.stack((parts[""] & 15, parts[""] >> 4), dim=-1).flatten(-2)[..., :columns].float()
        of_group = torch.arange(columns, device=q.device) // self.group
        q = q - (8.0 if self.symmetric else parts["_zero"][..., of_group].float())
        return (q * parts["_scale"][..., of_group].float() * parts["_factor"][..., None]).to(dtype)


def sound(name: str, values: Tensor) -> bool:
    """Whether a companion of this name can have these values: `quantise` makes no others."""
    if name.endswith("_zero"):
        return bool((values <= 15).all())
    return bool((values >= (-127 if values.dtype == torch.int8 else 0)).all() and (values < torch.inf).all())


def matrix_of(companion: str) -> str | None:
    """The matrix that a companion of this name belongs to; None if it is no such name."""
    return next((companion.removesuffix(each) for each in COMPANIONS if companion.endswith(each)), None)


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where that is no number."""
    return torch.nan_to_num(1 / x, nan=0.0, posinf=0.0, neginf=0.0)


def _grouped(rows: Tensor, group: int) -> Tensor:
    """`[O, I]` -> `[g, O * groups]`, the last group of a row filled up with zeros: sums over a group are then sums of
    long rows."""
    return F.pad(rows, (0, -rows.shape[1] % group)).view(-1, group).t().contiguous()


def _total(x: Tensor) -> Tensor:
    """The sums `[N]` of `[g, N]`, which is overwritten. They have one order whatever N is, as sum(0) has not: what a
    row becomes depends on no other row."""
    count = len(x)
    while count > 1:
        half = count // 2
        x[:half] += x[half : 2 * half]
        if count % 2:
            x[0] += x[count - 1]
        count = half
    return x[0]


def _steps(x: Tensor, inverse: Tensor, zero: Tensor, into: Tensor) -> Tensor:
    """q - z of groups `[g, N]`, given the inverses of their factors and their zeros, `[N]`."""
    return torch.mul(x, inverse, out=into).add_(zero).round_().clamp_(0, 15).sub_(zero)


def _packed(q: Tensor, rows: int, columns: int) -> Tensor:
    """uint8 `[g, O * groups]` -> `[O, I / 2]`."""
    values = F.pad(q.t().reshape(rows, -1)[:, :columns], (0, columns % 2))
    return values[:, 0::2] | (values[:, 1::2] << 4)
