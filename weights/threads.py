"""Many pieces of work, each of small ops, on all threads.

A thread takes whole pieces: were each of the many small ops cut up among all, they would wait for one another most of
the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def in_threads(work: Callable[[Piece], Made], pieces: Iterable[Piece]) -> Iterator[Made]:
    """What `work` makes of each piece, in order; no more than two for each thread are taken ahead. Threads are in
    inference mode where the caller is: else they could not write to tensors that it made."""
    left, threads, inference = iter(pieces), torch.get_num_threads(), torch.is_inference_mode_enabled()

    def done(piece: Piece) -> Made:
        with torch.inference_mode(inference):
            return work(piece)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            while some := list(itertools.islice(left, 2 * threads)):
                yield from pool.map(done, some)
    finally:
        torch.set_num_threads(threads)
