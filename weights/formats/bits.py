"""Numbers of a few bits as words and bytes hold them."""

from __future__ import annotations

import torch
from torch import Tensor

UNPACKED_VALUES = 2**20


def unpacked(words: Tensor, bits: int, count: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """The `count` numbers of `bits` bits each that rows of words `[N, W]` hold, `[N, count]`: one stream of bits along
    a row, the lowest of a word first, across words where `bits` does not divide their size."""
    made = torch.empty(len(words), count, dtype=dtype)
    rows = max(UNPACKED_VALUES // max(count, 1), 1)  # at a time, as they are wider meanwhile
    take = _unpacked if 8 % bits else _of_bytes
    for start in range(0, len(words), rows):
        made[start : start + rows] = take(words[start : start + rows], bits, count)
    return made


def _of_bytes(words: Tensor, bits: int, count: int) -> Tensor:
    """The same where no number lies across bytes."""
    stored = words.contiguous().view(-1).view(torch.uint8).view(len(words), -1)  # one column may have any stride
    return torch.stack([stored >> at & 2**bits - 1 for at in range(0, 8, bits)], -1).flatten(1)[:, :count]


def halves(stored: Tensor) -> Tensor:
    """The numbers in the low and high halves of bytes, uint8 `[N, I / 2]` -> `[N, I]`."""
    return torch.stack((stored & 15, stored >> 4), -1).flatten(-2)


def _unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    size = 8 * words.element_size()
    words = words.view(torch.int32 if size == 32 else torch.uint8).to(torch.int64) & (2**size - 1)
    first = torch.arange(count) * bits
    at, shift = first // size, first % size
    low = words[:, at] >> shift
    across = (shift + bits > size).nonzero().flatten()
    low[:, across] |= words[:, (at[across] + 1).clamp(max=words.shape[1] - 1)] << (size - shift[across])
    return low & (2**bits - 1)
