"""The forms in which a matrix may lie in memory, and what of a parameter lies in which.

A form says which parts a matrix `[O, I]` has (`weights/grouped.py` is the one that most quantised matrices have), packs
rows of it and gives them back as numbers. `Fields` are what goes into it: rows of numbers, and their factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minillm.weights.grouped import Fields

Parts = Mapping[str, Tensor]
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
ROWS_AT_ONCE = 2**20  # values dequantised at a time
ORDER = "_order"  # what the name of the order of inputs adds to that of the matrix


class Form(Protocol):
    """How a matrix lies in memory, its rows in tiles of `tile`."""

    @property
    def tile(self) -> int: ...

    def parts(self, shape: tuple[int, ...], /) -> Shapes:
        """Shape and type of each part of matrices `[..., O, I]`, by what its name adds to the matrix's."""
        ...

    def dequantise(self, parts: Parts, columns: int, dtype: torch.dtype, /) -> Tensor:
        """`[..., O, I]` of all parts, computed in fp32; the last tile of rows is whole."""
        ...

    def lookup(self, parts: Parts, rows: Tensor, columns: int, dtype: torch.dtype, /) -> Tensor:
        """Some rows, int64 `[...]` -> `[..., I]`; no other is dequantised."""
        ...


class Packer(Protocol):
    """What rows of a checkpoint can be packed into, `tile` of them at a time."""

    @property
    def tile(self) -> int: ...

    def pack(self, fields: Fields, /) -> dict[str, Tensor]:
        """The parts of rows."""
        ...


class Packing(Form, Packer, Protocol):
    """A form that is packed."""

    def values(self, fields: Fields, /) -> Tensor:
        """The numbers of rows, fp32 `[O, I]`."""
        ...


class Looked:
    """What forms share whose parts have one row for each of the matrix's."""

    tile = 1

    def lookup(self, parts: Parts, rows: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        """Some rows, int64 `[...]` -> `[..., I]`."""
        return self.dequantise({name: part[rows] for name, part in parts.items()}, columns, dtype)  # type: ignore[attr-defined]


class ByRows(Looked):
    """Such a form of values and perhaps factors, which says what numbers they are."""

    def pack(self, fields: Fields) -> dict[str, Tensor]:
        given = {"": fields.q, "_scale": fields.scale}
        return {name: part for name, part in given.items() if part is not None}

    def values(self, fields: Fields) -> Tensor:
        raise NotImplementedError

    def dequantise(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        *lead, count = parts[""].shape[:-1]
        flat = {name: part.flatten(0, -2) for name, part in parts.items()}
        made = torch.empty(len(flat[""]), columns, dtype=dtype, device=flat[""].device)
        step = max(ROWS_AT_ONCE // columns, 1)
        for start in range(0, len(made), step):
            some = slice(start, start + step)
            made[some] = self.values(Fields(flat[""][some], flat["_scale"][some] if "_scale" in flat else None))
        return made.view(*lead, count, columns)


@dataclass(frozen=True)
class Plain(ByRows):
    """Numbers as they are, beside quantised rows of the same parameter."""

    dtype: torch.dtype

    def parts(self, shape: tuple[int, ...]) -> Shapes:
        return {"": (shape, self.dtype)}

    def values(self, fields: Fields) -> Tensor:
        return fields.q.float()

    def pack(self, fields: Fields) -> dict[str, Tensor]:
        return {"": fields.q.to(self.dtype)}


@dataclass(frozen=True)
class Segment:
    """Rows start … start + rows - 1 of each matrix of a parameter, in one form; `ordered` where their inputs lie in an
    order of their own, which is the part "_order", int64 `[I]`."""

    start: int
    rows: int
    form: Form
    ordered: bool = False

    @property
    def mark(self) -> str:
        """What the names of its parts add to the parameter's, before what each adds."""
        return f"@{self.start}" if self.start else ""

    def parts(self, shape: tuple[int, ...]) -> Shapes:
        """Shape and type of all parts of a parameter `[..., O, I]`, by what their names add to its name."""
        made = self.form.parts((*shape[:-2], self.rows, shape[-1]))
        order: Shapes = {ORDER: ((shape[-1],), torch.int64)} if self.ordered else {}
        return {f"{self.mark}{name}": part for name, part in {**made, **order}.items()}
