"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # from glibc's malloc.h; the last is 32 MiB at most


def keep_memory() -> None:
    """Let the C library keep what is freed. A prompt's activations are allocated anew in every layer: to give their
    pages back each time and have them filled with zeros again takes 6 to 8 % of its time."""
    _set((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 512 << 20), (M_TOP_PAD, 64 << 20))


def return_memory() -> None:
    """Let it give back at once what is freed of 1 MiB or more: of layers that are put together and apart again, pieces
    of all sizes, it would keep as much again as is used."""
    _set((M_MMAP_THRESHOLD, 1 << 20), (M_TRIM_THRESHOLD, 1 << 20), (M_TOP_PAD, 1 << 20))


def _set(*options: tuple[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # another C library
        return
    for option, value in options:
        mallopt(option, value)
