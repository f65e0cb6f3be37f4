"""Ranks as threads of one process, for what need not go through sockets: the sums are made where all meet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from minillm.ops.ranks import Alone


class Meeting:
    """Where the threads of a model bring what they have."""

    def __init__(self, count: int):
        self.barrier = threading.Barrier(count, timeout=60)
        self.brought: list[Any] = [None] * count


class Thread(Alone):
    """One of them."""

    def __init__(self, meeting: Meeting, rank: int):
        self.meeting, self.rank, self.count = meeting, rank, len(meeting.brought)
        self.sums = 0

    def _all(self, own: Tensor) -> list[Tensor]:
        self.meeting.brought[self.rank] = own
        self.meeting.barrier.wait()
        found = [*self.meeting.brought]
        self.meeting.barrier.wait()
        return found

    def total(self, y: Tensor) -> Tensor:
        self.sums += 1
        return torch.stack([each.float() for each in self._all(y)]).sum(0).to(y.dtype)

    def joined(self, part: Tensor, size: int) -> Tensor:
        made = torch.cat(self._all(part), dim=-1)
        assert made.shape[-1] == size
        return made


def in_threads(count: int, work: Callable[[Thread], Any]) -> list[Any]:
    """What `work` returns for each rank."""
    meeting = Meeting(count)
    with ThreadPoolExecutor(count) as pool:
        waiting = [pool.submit(_or_broken, work, Thread(meeting, rank)) for rank in range(count)]
        return [each.result() for each in waiting]


def _or_broken(work: Callable[[Thread], Any], rank: Thread) -> Any:
    try:
        return work(rank)
    except BaseException:
        rank.meeting.barrier.abort()
        raise
