"""Memory for parameters on a CPU: one block of large pages.

A decode step reads every weight once, and on ordinary pages of 4 KiB the processor spends part of that time on finding
where they lie; on Linux a block can ask for pages of 2 MiB (madvise(2), MADV_HUGEPAGE), and of such a block a thousand
parameters of any size have their share. Each has a storage of its own in it: what saves tensors writes whole storages,
and takes two tensors of one storage for the same weights.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes: a line of the cache, which the widest loads then do not cross
HUGE_PAGE = 2**21

Allocate = Callable[[torch.Size, torch.dtype], Tensor]


def allocator(wanted: Iterable[Tensor], device: torch.device) -> Allocate:
    """What gives out memory for tensors of these shapes and dtypes, each once and in any order: (shape, dtype) -> an
    uninitialised tensor on `device`."""
    if device.type != "cpu":
        return lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device)
    block, taken = _huge(sum(_room(each.shape, each.dtype) for each in wanted)).numpy(), 0

    def allocate(shape: torch.Size, dtype: torch.dtype) -> Tensor:
        nonlocal taken
        start, taken = taken, taken + _room(shape, dtype)
        count = math.prod(shape) * dtype.itemsize
        if not count:
            return torch.empty(shape, dtype=dtype)
        # Not a slice, whose storage would be that of the whole block. It keeps the block alive all the same.
        return torch.frombuffer(block, dtype=torch.uint8, count=count, offset=start).view(dtype).view(shape)

    return allocate


class GivingBack:
    """Has the C library return memory to the system, each time that `BETWEEN` bytes have been read: it keeps what
    tensors of many sizes leave in each thread's share, in hope of more like them, and that adds up to 200 MB."""

    BETWEEN = 2**22

    def __init__(self) -> None:
        self.read, self._trim = 0, _trim()

    def __call__(self, nbytes: int) -> None:
        self.read += nbytes
        if self._trim and self.read >= self.BETWEEN:
            self.read = 0
            self._trim(0)


def _trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3); None where there is another library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _room(shape: torch.Size, dtype: torch.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _huge(size: int) -> Tensor:
    """Bytes that nothing has touched yet, on large pages where the system has them."""
    memory = torch.empty(size + HUGE_PAGE, dtype=torch.uint8, device="cpu")
    start = -memory.data_ptr() % HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        place = ctypes.c_void_p(memory.data_ptr() + start), ctypes.c_size_t(size)
        ctypes.CDLL(None).madvise(*place, mmap.MADV_HUGEPAGE)  # advice: that it is not taken is no error
    return memory[start : start + size]
