"""Numbers of few bits in groups that share a scale: what a quantised matrix W `[O, I]` of most formats is in memory.

    W[o, i] = s[o, g] (q[o, i] - z[o, g])     z the same for all, or a whole number of each group g = i / group
    W[o, i] = s[o, g] q[o, i] - m[o, g]       with a minimum for each group instead
    W[o, i] = s[o, g] T[q[o, i]]              with a table of 16 values instead

s is stored as it is, or as an int8 code in units of a factor that `span` inputs of a row share (m likewise).

The numbers lie in planes of bytes, so that one load of 16 rows serves a whole vector. Rows go together in tiles (of 16
for the loops of a CPU, of 1 elsewhere), columns are filled up with zeros to a multiple of 32, and four inputs of a row
lie side by side. With `C` columns and `T` tiles of `t` rows:

    8 bits     q[r, 4 c + k]                          = plane[T, c, r, k]          plane [T, C / 4, t, 4]
    4 to 6     q[r, 8 c + 4 h + k] & 15               = half h of plane[T, c, r, k]      [T, C / 8, t, 4]
    6          q[r, 16 c + 4 n + k] >> 4              = bits 2n, 2n + 1 of high[T, c, r, k]  [T, C / 16, t, 4]
    5          q[r, 32 c + 4 n + k] >> 4              = bit n of high[T, c, r, k]        [T, C / 32, t, 4]
    scales                                              [T, G, t], and factors [T, S, t]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Parts = Mapping[str, Tensor]  # what a part adds to the name of the matrix -> its values
CHUNK = 32  # columns are filled up to a multiple of it
ROWS_AT_ONCE = 2**20  # values unpacked at a time
INPUTS = {4: 8, 5: 8, 6: 8, 8: 4}  # of which four bytes of the plane of a row have the numbers
HIGH = {5: (32, 1), 6: (16, 2)}  # the same for the plane of high bits, and how many of a number it has


@dataclass(frozen=True)
class Fields:
    """What rows of a matrix are made of, row by row: numbers q `[O, I]`; scales, zeros (uint8) and minima `[O, G]`;
    factors of scales and of minima `[O, S]`."""

    q: Tensor
    scale: Tensor | None = None
    factor: Tensor | None = None
    zero: Tensor | None = None
    least: Tensor | None = None
    floor: Tensor | None = None

    def rows(self, chosen: slice) -> Fields:
        """Some of the rows."""
        return self.map(lambda values: values[chosen])

    def columns(self, first: int, last: int, group: int, span: int) -> Fields:
        """Numbers first … last - 1 of each row, with the factors that they have: each of so many has one, 0 being all
        of a row. The first is the first of its group."""

        def some(values: Tensor | None, unit: int) -> Tensor | None:
            return values if values is None or not unit else values[:, first // unit : -(-last // unit)]

        of_groups = {name: some(getattr(self, name), group) for name in ("scale", "zero", "least")}
        of_spans = {name: some(getattr(self, name), span) for name in ("factor", "floor")}
        return Fields(self.q[:, first:last], **of_groups, **of_spans)

    @staticmethod
    def stacked(parts: Sequence[Fields]) -> Fields:
        """Rows one under the other, of the same kind."""
        if len(parts) == 1:
            return parts[0]
        found = {field.name: [getattr(each, field.name) for each in parts] for field in dataclasses.fields(parts[0])}
        joined = {n: torch.cat(each) if isinstance(each[0], Tensor) else each[0] for n, each in found.items()}
        return type(parts[0])(**joined)

    def map(self, change: Callable[[Tensor], Tensor]) -> Fields:
        """The same with each tensor changed."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given: dict[str, Any] = {n: change(each) if isinstance(each, Tensor) else each for n, each in found.items()}
        return type(self)(**given)

    def apart(self) -> Fields:
        """The same with each number in a byte of its own."""
        return self


@dataclass(frozen=True)
class Paired(Fields):
    """Fields of which a byte of q has the low four bits of two of `inputs` numbers, the first in its low half, and a
    byte of `high` the next two of four: how folders keep them. Whole words of them are laid out as they are."""

    high: Tensor | None = None
    inputs: int = 0

    def apart(self) -> Fields:
        q = apart(self.q, 4) if self.high is None else apart(self.q, 4) | apart(self.high, 2) << 4
        return Fields(q[:, : self.inputs], self.scale, self.factor, self.zero, self.least, self.floor)

    @property
    def whole(self) -> bool:
        """Whether no number has to be filled in."""
        return self.inputs % CHUNK == 0 and 2 * self.q.shape[1] == self.inputs


@dataclass(frozen=True)
class Grouped:
    """How a matrix lies. `scale` is the type of scales and minima (int8: codes, whose factors are `factor`, one for
    `span` inputs, or for a row where that is 0); `zero` is z where all have the same, None with zeros of groups;
    `group` 0 is one group for a row. Values are `rounded` to a type where that is what the matrix was made in."""

    bits: int
    group: int
    scale: torch.dtype = torch.float16
    factor: torch.dtype | None = None
    span: int = 0
    zero: int | None = 0
    minimum: bool = False
    table: tuple[float, ...] | None = None
    rounded: torch.dtype | None = None
    tile: int = 1

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each part of matrices `[..., O, I]`."""
        *lead, outputs, inputs = shape
        columns, tiles = -(-inputs // CHUNK) * CHUNK, (*lead, -(-outputs // self.tile))
        found = {"": ((*tiles, columns // INPUTS[self.bits], self.tile, 4), torch.uint8)}
        if self.bits in HIGH:
            found["_high"] = ((*tiles, columns // HIGH[self.bits][0], self.tile, 4), torch.uint8)
        groups, spans = (*tiles, count(inputs, self.group), self.tile), (*tiles, count(inputs, self.span), self.tile)
        found["_scale"] = (groups, self.scale)
        if self.factor:
            found["_factor"] = (spans, self.factor)
        if self.zero is None:
            found["_zero"] = (groups, torch.uint8)
        if self.minimum:
            found["_least"] = (groups, self.scale)
            if self.factor:
                found["_floor"] = (spans, self.factor)
        return found

    def pack(self, fields: Fields) -> dict[str, Tensor]:
        """The parts of whole tiles of rows; the last is filled up with zeros."""
        if isinstance(fields, Paired) and fields.whole:
            found = {"": _turned(self._rows(fields.q), ((8, 0xFF00), (4, 0xF000F0)))}
            if fields.high is not None:
                found["_high"] = _turned(self._rows(fields.high), ((6, 0xCC00CC), (12, 0xF0F0)))
        else:
            fields, per = fields.apart(), INPUTS[self.bits]
            q = self._rows(fields.q, CHUNK)
            found = {"": _plane(q if per == 4 else q & 15, per, 8 // (per // 4))}
            if self.bits in HIGH:
                found["_high"] = _plane(q >> 4, *HIGH[self.bits])
        rest = {"_scale": fields.scale, "_factor": fields.factor, "_zero": fields.zero, "_least": fields.least,
                "_floor": fields.floor}  # fmt: skip
        return found | {name: self._tiled(values) for name, values in rest.items() if values is not None}

    def _rows(self, q: Tensor, columns: int = 1) -> Tensor:
        """uint8 `[O, C]` in tiles, `[T, t, C]`, filled up with zeros, C to a multiple of `columns`."""
        more = -q.shape[1] % columns, -q.shape[0] % self.tile
        q = F.pad(q, (0, more[0], 0, more[1])) if any(more) else q
        return q.view(-1, self.tile, q.shape[1])

    def _tiled(self, values: Tensor) -> Tensor:
        if more := -values.shape[0] % self.tile:
            values = F.pad(values, (0, 0, 0, more))
        return values.view(-1, self.tile, values.shape[1]).transpose(1, 2).contiguous()

    def fields(self, parts: Parts, inputs: int) -> Fields:
        """What was packed: of parts `[T, …]` the fields of T times `tile` rows."""
        per = INPUTS[self.bits]
        q = _numbers(parts[""], per, 8 // (per // 4))
        if self.bits in HIGH:
            q = q | _numbers(parts["_high"], *HIGH[self.bits]) << 4
        flat = {name: part.transpose(1, 2).flatten(0, 1) for name, part in parts.items() if name not in ("", "_high")}
        rest = (flat.get(name) for name in ("_factor", "_zero", "_least", "_floor"))
        return Fields(q.flatten(0, 1)[:, :inputs], flat["_scale"], *rest)

    def values(self, fields: Fields) -> Tensor:
        """fp32 `[O, I]`."""
        made = self._values(fields.apart())
        return made if self.rounded is None else made.to(self.rounded).float()

    def _values(self, fields: Fields) -> Tensor:
        assert fields.scale is not None
        inputs = fields.q.shape[1]
        scale = self._in_units(fields.scale, fields.factor, inputs)
        if self.table is not None:
            table = torch.tensor(self.table, dtype=torch.float32, device=scale.device)
            return torch.mul(*grouped(table[fields.q.int()], scale, self.group)).view(fields.q.shape)
        numbers = fields.q.float()
        if fields.zero is not None:
            numbers = torch.sub(*grouped(numbers, fields.zero.float(), self.group)).view(fields.q.shape)
        elif self.zero:
            numbers -= self.zero
        made = torch.mul(*grouped(numbers, scale, self.group)).view(fields.q.shape)
        if fields.least is None:
            return made
        least = self._in_units(fields.least, fields.floor, inputs)
        return torch.sub(*grouped(made, least, self.group)).view(fields.q.shape)

    def _in_units(self, scale: Tensor, factor: Tensor | None, inputs: int) -> Tensor:
        if factor is None:
            return scale.float()
        per = count(inputs, self.group) if not self.span else self.span // self.group
        return scale.float() * factor.float().repeat_interleave(per, dim=-1)[:, : scale.shape[1]]

    def dequantise(self, parts: Parts, columns: int, dtype: torch.dtype, rows: int | None = None) -> Tensor:
        """`[..., O, I]` of all parts, computed in fp32; O is `rows`, or all of the tiles' rows."""
        lead, tiles = parts[""].shape[:-4], parts[""].shape[-4]
        outputs = tiles * self.tile if rows is None else rows
        made = torch.empty(*lead, outputs, columns, dtype=dtype, device=parts[""].device)
        step = max(ROWS_AT_ONCE // (columns * self.tile), 1)
        for at in torch.cartesian_prod(*(torch.arange(n) for n in lead)).view(-1, len(lead)).tolist() if lead else [[]]:
            for start in range(0, tiles, step):
                some = {name: part[tuple(at)][start : start + step] for name, part in parts.items()}
                values = self.values(self.fields(some, columns))[: outputs - start * self.tile]
                made[tuple(at)][start * self.tile : start * self.tile + len(values)] = values
        return made

    def lookup(self, parts: Parts, rows: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        """Some rows of a matrix, int64 `[...]` -> `[..., I]`; no other is dequantised."""
        tiles, inside = rows.flatten() // self.tile, rows.flatten() % self.tile
        chosen = {name: part[tiles, :, inside].unsqueeze(2) for name, part in parts.items()}
        one = dataclasses.replace(self, tile=1)
        return one.values(one.fields(chosen, columns)).to(dtype).view(*rows.shape, columns)


def count(inputs: int, size: int) -> int:
    """Groups of a row; size 0 is one for all."""
    return -(-inputs // size) if size else 1


def grouped(numbers: Tensor, values: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Numbers `[O, I]` and values of groups `[O, G]`, of shapes in which each number meets the value of its group."""
    inputs = numbers.shape[1]
    if inputs % (group or inputs) == 0:
        return numbers.view(*values.shape, -1), values.unsqueeze(-1)
    return numbers, values.repeat_interleave(group, dim=-1)[:, :inputs]


def _plane(q: Tensor, per: int, bits: int) -> Tensor:
    """uint8 `[T, t, C]` -> `[T, C / per, t, 4]`: each byte has `per / 4` numbers of `bits` bits, four inputs apart.
    Four bytes are moved, and shifted, as one word: numbers have no more bits than there is room for."""
    words = _words(q)
    words = words.view(len(q), -1, per // 4, q.shape[1])
    made = words[:, :, 0]
    for n in range(1, per // 4):
        made = made | words[:, :, n] << (bits * n)
    return made.reshape(-1).view(torch.uint8).view(*made.shape, 4)


def _words(q: Tensor) -> Tensor:
    """uint8 `[T, t, C]` -> int32 `[T, C / 4, t]`."""
    return q.reshape(-1).view(torch.int32).view(*q.shape[:2], -1).transpose(1, 2).contiguous()


def _turned(q: Tensor, steps: Iterable[tuple[int, int]]) -> Tensor:
    """uint8 `[T, t, C]` -> `[T, C / 4, t, 4]`, the bits of each word in another order. A step exchanges those of a mask
    with those so many places above them."""
    words = _words(q)
    for by, mask in steps:
        changed = (words >> by).bitwise_xor_(words).bitwise_and_(mask)
        words.bitwise_xor_(changed).bitwise_xor_(changed.bitwise_left_shift_(by))
    return words.reshape(-1).view(torch.uint8).view(*words.shape, 4)


def side_by_side(q: Tensor, bits: int) -> Tensor:
    """Numbers of few bits of rows, uint8 `[O, I]`, as bytes: the first of each in the lowest bits."""
    per = 8 // bits
    made = q[:, 0::per]
    for n in range(1, per):
        made = made | q[:, n::per] << (bits * n)
    return made


def apart(packed: Tensor, bits: int) -> Tensor:
    """What `side_by_side` made bytes of."""
    return torch.stack([packed >> (bits * n) & 2**bits - 1 for n in range(8 // bits)], dim=-1).flatten(1)


def _numbers(plane: Tensor, per: int, bits: int) -> Tensor:
    """What `_plane` packed: `[T, t, C]`. Byte by byte, as models that are traced come through here too."""
    numbers = torch.stack([plane >> (bits * n) for n in range(per // 4)], dim=2) if bits < 8 else plane.unsqueeze(2)
    numbers = numbers.permute(0, 3, 1, 2, 4).flatten(2)
    return numbers & (2**bits - 1) if bits < 8 else numbers
