"""Ranks as threads of one process, for what need not go through sockets: the sums are made where all meet."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.adapters.use import use
from minillm.llm import LLM
from minillm.loading import filled, lay_out
from minillm.parallel.follow import follow
from minillm.parallel.gradients import Several

LONG = 300.0  # seconds that a thread waits for another, which has then failed


class Meeting:
    """Where the threads of a model bring what they have."""

    def __init__(self, count: int, wide: int):
        self.barriers = [threading.Barrier(wide, timeout=LONG) for _ in range(count // wide)]
        self.brought: list[Any] = [None] * count
        self.hidden: list[queue.SimpleQueue[Tensor]] = [queue.SimpleQueue() for _ in range(count)]
        self.words: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(count)]


class Thread(Several):
    """One of them; so many share each layer, where that is not all."""

    WIDE: int | None = None

    def __init__(self, meeting: Meeting, rank: int):
        self.meeting, self.rank, self.count = meeting, rank, len(meeting.brought)
        self.wide = self.WIDE or self.count
        self.gone: list[int] = []

    def _all(self, own: Tensor) -> list[Tensor]:
        stage, brought = self.rank // self.wide, self.meeting.brought
        brought[self.rank] = own
        self.meeting.barriers[stage].wait()
        found = brought[stage * self.wide : (stage + 1) * self.wide]
        self.meeting.barriers[stage].wait()
        return found

    def summed(self, y: Tensor) -> Tensor:
        return torch.stack([each.float() for each in self._all(y)]).sum(0).to(y.dtype)

    def most(self, y: Tensor) -> Tensor:
        return torch.stack(self._all(y)).amax(0)

    def tell(self, what: str, tensors: Sequence[Tensor] = (), **given: Any) -> None:
        if self.rank == 0:
            gone, self.gone = self.gone, []
            text = json.dumps({"gone": gone, **given})
            for each in self.meeting.words[1:]:
                each.put((what, [tensor.clone() for tensor in tensors], text))

    def told(self) -> tuple[str, list[Tensor], dict[str, Any]]:
        what, tensors, text = self.meeting.words[self.rank].get(timeout=LONG)
        return what, tensors, json.loads(text)

    def forget(self, number: int) -> None:
        self.gone.append(number)

    def beside(self, part: Tensor, size: int) -> Tensor:
        made = torch.cat(self._all(part), dim=-1)
        assert made.shape[-1] == size
        return made


class Stage(Thread):
    """One with some of the layers."""

    staged, WIDE = True, 1

    def through(self, x: Tensor, layers: Callable[[Tensor], Tensor]) -> Tensor:
        def passed() -> Tensor:
            return self.meeting.hidden[self.rank].get(timeout=LONG)

        behind = self.rank >= self.wide
        y = layers(passed() if behind else x)
        self.meeting.hidden[(self.rank + self.wide) % self.count].put(y.clone())
        return y if behind else passed()

    def all_of(self, number: int) -> list[int]:
        return [number] * self.count


class Mesh(Stage):
    """One with a share of some of the layers."""

    WIDE = 2


def share(folder: Path, rank: Thread, adapter: Any = None, merged: bool | None = None, **options: Any) -> LLM:
    """What a rank loads of a checkpoint, and of adapters."""
    laid = lay_out(folder, **{"dtype": "float32", "device": "cpu", "kernels": "reference", **options}, ranks=rank)
    llm = filled(laid, lambda done, total: None)
    if adapter is not None:
        use(llm, adapter, merged, laid.share)
    return llm


def led(folder: Path, count: int, work: Callable[[LLM], Any], kind: type[Thread] = Thread, **options: Any) -> Any:
    """What `work` gives with the first rank, which the others follow."""

    def leads(rank: Thread) -> Any:
        llm = share(folder, rank, **options)
        if rank.rank:
            return follow(llm.model, rank)
        try:
            return work(llm)
        finally:
            rank.tell("end")

    return in_threads(count, leads, kind)[0]


def in_threads(count: int, work: Callable[[Thread], Any], kind: type[Thread] = Thread) -> list[Any]:
    """What `work` returns for each rank."""
    meeting = Meeting(count, kind.WIDE or count)
    with ThreadPoolExecutor(count) as pool:
        waiting = [pool.submit(_or_broken, work, kind(meeting, rank)) for rank in range(count)]
        return [each.result() for each in waiting]


def _or_broken(work: Callable[[Thread], Any], rank: Thread) -> Any:
    try:
        return work(rank)
    except BaseException:
        for barrier in rank.meeting.barriers:
            barrier.abort()
        raise
