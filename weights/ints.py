"""Integers with factors: what quantising a plain matrix W `[O, I]` gives, and how a folder keeps it.

    int8         W[o, i] = q[o, i] s[o]
    int4, int6   W[o, i] = (q[o, i] - z[o, i / g]) s[o, i / g] f[o]

A group of g values of a row of int4 has a factor s of its own, itself an int8, in units of the row's f (as QLoRA's
double quantisation, arXiv:2305.14314, and llama.cpp's k-quants), and z = 8, or a whole number of its own. Groups of 16
then cost no more than groups of 32 with a 16-bit factor: 4 + 8 / 16 bits, and 32 for each row. int6 has two bits more
and z = 32: embedding and head under int4, which lose too much at 4 bits.

In memory all are forms of `grouped.py`. In a folder (`formats/integers.py`) the parts of a matrix are q, called as the
matrix itself, and its companions, called the same and "_scale" (s), "_factor" (f) and "_zero" (z). int4 keeps q from 0
to 15, two in a byte: value 2j of a row in the low half of its byte j and 2j + 1 in the high half. int6 keeps three
runs of I / 4 bytes for a row: two of the low four bits, as int4 has them, and one of the high two, those of value
4j + n in bits 2n and 2n + 1 of byte j.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.weights.forms import Shapes
from minillm.weights.grouped import Fields, Grouped, Paired, Parts, side_by_side

METHOD = "minillm"  # what config.json calls the scheme of a folder that `minillm.quantize` wrote
GROUP = 16
MAX_GROUP = 4096
CLIPPED = (0.8, 0.9, 1.0)  # shares of a group's largest value that its range may end at


@dataclass(frozen=True)
class Int8:
    """One byte for a value and 32 bits for a row. The error of a value is half of its row's factor at most."""

    name, tile = "int8", 1

    @property
    def outer(self) -> Int8:
        """What embedding and head become."""
        return self

    @property
    def form(self) -> Grouped:
        """How it lies in memory: q + 128, in one group for a row."""
        return Grouped(8, 0, torch.float32, zero=128)

    def parts(self, shape: tuple[int, ...]) -> Shapes:
        """Shape and type of each part of matrices `[..., O, I]` in a folder."""
        return {"": (shape, torch.int8), "_scale": ((math.prod(shape[:-1]),), torch.float32)}

    def quantise(self, rows: Tensor) -> Fields:
        """fp32 `[O, I]` as numbers and factors: s is the largest magnitude of a row over 127."""
        scale = rows.abs().amax(-1, keepdim=True) / 127
        return Fields((rows * _inverse(scale)).round_().to(torch.int8).view(torch.uint8) ^ 128, scale)

    def pack(self, fields: Fields) -> dict[str, Tensor]:
        """The parts of rows."""
        assert fields.scale is not None
        return {"": (fields.q ^ 128).view(torch.int8), "_scale": fields.scale[:, 0]}

    def fields(self, parts: Parts, columns: int) -> Fields:
        """What was packed."""
        return Fields(parts[""].view(torch.uint8) ^ 128, parts["_scale"][:, None])


@dataclass(frozen=True)
class InGroups:
    """`bits` for a value, one byte (two, if not symmetric) for a group and 32 bits for a row."""

    group: int = GROUP
    symmetric: bool = True
    bits: ClassVar[int]
    name: ClassVar[str]
    tile = 1

    def __post_init__(self) -> None:
        if isinstance(self.group, bool) or not isinstance(self.group, int) or not 1 <= self.group <= MAX_GROUP:
            raise ValueError(f"the group size is {self.group!r}, it must be a whole number from 1 to {MAX_GROUP}")

    @property
    def form(self) -> Grouped:
        """How it lies in memory."""
        return Grouped(self.bits, self.group, torch.int8, torch.float32, zero=self._half if self.symmetric else None)

    def _bytes(self, columns: int) -> tuple[int, ...]:
        """The shape of what a row's numbers are packed into."""
        raise NotImplementedError

    def _packed(self, q: Tensor) -> Tensor:
        """Numbers `[O, I]` as bytes."""
        raise NotImplementedError

    def _halves(self, packed: Tensor) -> tuple[Tensor, Tensor | None]:
        """What was packed: low bits of pairs, and high ones."""
        raise NotImplementedError

    @property
    def _half(self) -> int:
        return 2 ** (self.bits - 1)

    def parts(self, shape: tuple[int, ...]) -> Shapes:
        """Shape and type of each part of matrices `[..., O, I]` in a folder."""
        *rows, columns = shape
        groups, sizes = (*rows, -(-columns // self.group)), (*rows, *self._bytes(columns))
        found: Shapes = {"": (sizes, torch.uint8), "_scale": (groups, torch.int8)}
        zero: Shapes = {} if self.symmetric else {"_zero": (groups, torch.uint8)}
        return {**found, "_factor": ((math.prod(rows),), torch.float32), **zero}

    def quantise(self, rows: Tensor) -> Fields:
        """fp32 `[O, I]` as numbers, factors and zeros.

        Of a few ranges for a group, each cut off at some share of its largest value (GPTQ, arXiv:2210.17323, searches
        so in its code), the one of least squared error is kept once its factor is the best for the numbers that it
        gives, s = d·x / d·d with d = q - z (llama.cpp's make_qx_quants): the error is then x·x - (d·x)² / d·d.
        """
        x = _grouped(rows, self.group)
        best = scale = x.new_zeros(x.shape[1])
        zero, steps, products = torch.full_like(scale, self._half), torch.empty_like(x), torch.empty_like(x)
        for inverse, middle in self._ranges(x):
            self._steps(x, inverse, middle, steps)
            dot = _total(torch.mul(steps, x, out=products)).clone()
            square = _total(torch.mul(steps, steps, out=products))
            fitting = dot / square.clamp_(min=1)  # d is whole: only where all of it is 0 is there less
            better = (gain := dot.mul_(fitting)) > best
            best, scale = torch.where(better, gain, best), torch.where(better, fitting, scale)
            zero = zero if self.symmetric else torch.where(better, middle, zero)
        scale = scale.view(len(rows), -1)
        factor = scale.abs().amax(1, keepdim=True) / 127
        codes = (scale * _inverse(factor)).round_()
        q = self._steps(x, _inverse((codes * factor).flatten()), zero, steps).add_(zero).to(torch.uint8)
        q = q.t().reshape(len(rows), -1)[:, : rows.shape[1]]
        zeros = None if self.symmetric else zero.to(torch.uint8).view(len(rows), -1)
        return Fields(q, codes.to(torch.int8), factor, zeros)

    def _ranges(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inverses of factors, and zeros, to try for groups `[g, N]`. Symmetric, the largest value is given to the side
        of 8 numbers (of int4) or to that of 7; else the range reaches from the least to the largest, over 0."""
        high, low, half = x.amax(0), x.amin(0), self._half
        if self.symmetric:
            inverse, zero = _inverse(torch.where(high > -low, high, low)), torch.full_like(high, half)
            for share in CLIPPED:
                yield inverse * (-half / share), zero
                yield inverse * ((half - 1) / share), zero
            return
        low, high = low.clamp(max=0), high.clamp(min=0)
        inverse = _inverse(high - low) * (2 * half - 1)
        for share in CLIPPED:
            yield inverse / share, (-low * inverse).round()

    def _steps(self, x: Tensor, inverse: Tensor, zero: Tensor, into: Tensor) -> Tensor:
        """q - z of groups `[g, N]`, given the inverses of their factors and their zeros, `[N]`."""
        return torch.mul(x, inverse, out=into).add_(zero).round_().clamp_(0, 2**self.bits - 1).sub_(zero)

    def pack(self, fields: Fields) -> dict[str, Tensor]:
        """The parts of rows."""
        assert fields.scale is not None
        assert fields.factor is not None
        found = {"": self._packed(fields.q), "_scale": fields.scale, "_factor": fields.factor[:, 0]}
        return found if fields.zero is None else {**found, "_zero": fields.zero}

    def fields(self, parts: Parts, columns: int) -> Fields:
        """What was packed."""
        q, high = self._halves(parts[""])
        factor, zero = parts["_factor"][:, None], parts.get("_zero")
        return Paired(q, parts["_scale"], factor, zero, high=high, inputs=columns)


@dataclass(frozen=True)
class Int6(InGroups):
    """Three quarters of a byte for a value."""

    bits, name = 6, "int6"

    def _bytes(self, columns: int) -> tuple[int, ...]:
        return 3, -(-columns // 4)

    def _packed(self, q: Tensor) -> Tensor:
        q = F.pad(q, (0, -q.shape[1] % 4))
        return torch.cat((side_by_side(q & 15, 4), side_by_side(q >> 4, 2)), dim=1).view(len(q), 3, -1)

    def _halves(self, packed: Tensor) -> tuple[Tensor, Tensor | None]:
        return packed[:, :2].flatten(1), packed[:, 2]


@dataclass(frozen=True)
class Int4(InGroups):
    """Half a byte for a value, but for embedding and head, which become `outer`: int8 in folders of older versions."""

    outer: Int8 | Int6 = Int6()
    bits, name = 4, "int4"

    def _bytes(self, columns: int) -> tuple[int, ...]:
        return (-(-columns // 2),)

    def _packed(self, q: Tensor) -> Tensor:
        return side_by_side(F.pad(q, (0, q.shape[1] % 2)), 4)

    def _halves(self, packed: Tensor) -> tuple[Tensor, Tensor | None]:
        return packed, None


Integers = Int8 | InGroups  # what a matrix can become


def scheme(name: str, group_size: int | None = None, symmetric: bool = True) -> Int8 | Int4:
    """What a command line asks for. Raises ValueError for what is not supported."""
    if name == "int8":
        if group_size is not None or not symmetric:
            raise ValueError("int8 has one factor for each row; group size and zero points go with int4")
        return Int8()
    if name != "int4":
        raise ValueError(f"quantize is {name!r}; use int8 or int4")
    return Int4(GROUP if group_size is None else group_size, symmetric)


def read(section: Mapping[str, Any]) -> Int8 | Int4 | None:
    """What a config.json says of the matrices of a folder that this project wrote; None of any other folder. Raises
    ValueError for one of another version."""
    if section.get("quant_method") != METHOD:
        return None
    made = scheme(str(section.get("format")), section.get("group_size"), section.get("symmetric") is not False)
    if isinstance(made, Int4) and section.get("embedding_format") == Int8.name:
        made = replace(made, outer=Int8())
    if _said(section) != _said(written(made)):
        raise ValueError(f"config.json: quantization_config says {section}, this version of minillm reads "
                         f"{written(made)}; write the folder again with it")  # fmt: skip
    return made


def written(made: Int8 | Int4) -> dict[str, Any]:
    """What `read` reads."""
    int4 = made if isinstance(made, Int4) else None
    return {
        "quant_method": METHOD,
        "format": made.name,
        "group_size": int4.group if int4 else None,
        "symmetric": int4.symmetric if int4 else True,
        "embedding_format": made.outer.name,
    }


def _said(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


def sound(ending: str, values: Tensor) -> bool:
    """Whether a part with this ending can have these values: `quantise` makes no others."""
    if values.is_floating_point():
        return bool((values >= 0).all() and (values < torch.inf).all())
    return bool((values <= 15).all()) if ending == "_zero" else bool((values > -128).all())


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
