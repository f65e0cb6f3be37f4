"""What layouts of blocks share. All functions take uint8 `[N, bytes]`, a row for each block, and `fields` cuts these
into the block's parts; what they make is fp32 or whole numbers, value by value in the order of the row that the block
is of. Numbers of a few bits are int8, as wider ones would take most of the time of a load."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

# Values of a 4-bit float with 2 bits of exponent and 1 of mantissa, doubled; the upper half are their negatives.
E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def fields(blocks: Tensor, *sizes: int) -> list[Tensor]:
    """Columns in parts of these sizes."""
    assert blocks.shape[1] == sum(sizes)
    ends = list(itertools.accumulate(sizes))
    return [blocks[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]


def half(part: Tensor) -> Tensor:
    """fp16 numbers as fp32."""
    return words(part, torch.float16).float()


def words(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Little-endian numbers of a type."""
    return part.clone(memory_format=torch.contiguous_format).view(dtype)


def unsigned(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Little-endian whole numbers of 2 or 4 bytes without a sign, int64."""
    return words(part, dtype).to(torch.int64) & (1 << 8 * dtype.itemsize) - 1


def shifted(part: Tensor, shifts: Sequence[int], bits: int) -> Tensor:
    """`[N, …, size]` -> `[N, …, shifts, size]`: the `bits` bits from each shift on, in the type of the part."""
    return part.unsqueeze(-2) >> torch.tensor(shifts, dtype=part.dtype)[:, None] & (1 << bits) - 1


def planes(part: Tensor, run: int, bits: int) -> Tensor:
    """Runs of `run` bytes, each of which holds first the lowest `bits` bits of all its bytes, then the next:
    `[N, bytes]` -> int8 `[N, bytes * 8 / bits]`."""
    shifts = range(0, 8, bits)
    if run % 4:
        return shifted(part.view(len(part), -1, run), shifts, bits).reshape(len(part), -1).view(torch.int8)
    words, mask = part.contiguous().view(torch.int32).view(len(part), -1, 1, run // 4), ((1 << bits) - 1) * 0x01010101
    found = words >> torch.tensor(shifts, dtype=torch.int32)[:, None] & mask  # four bytes at a time
    return found.view(len(part), -1).view(torch.int8)


def numbers(part: Tensor, run: int, bits: int) -> Tensor:
    """The same, uint8."""
    return planes(part, run, bits).view(torch.uint8)


def stream(part: Tensor, bits: int) -> Tensor:
    """One value after the other, the lowest bits of a byte first: `[N, bytes]` -> int8 `[N, bytes * 8 / bits]`."""
    return planes(part, 1, bits)


def chosen(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table: `[K, …]` at int `[N, I]` -> `[N, I, …]`."""
    return table[index.long()]


def grouped(scale: Tensor, values: Tensor) -> Tensor:
    """Each scale `[N, G]` times its run of values `[N, V]`."""
    return (scale.unsqueeze(-1) * values.float().view(*scale.shape, -1)).view(values.shape)
