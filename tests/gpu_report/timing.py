"""Times on a GPU by its own events; on a CPU, in a rehearsal, by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Marks:
    """Moments between which the GPU works: the host does not wait for any of them until it asks."""

    def __init__(self, device: torch.device):
        self.on_gpu, self.marks = device.type == "cuda", list[Any]()

    def mark(self) -> None:
        if not self.on_gpu:
            return self.marks.append(time.perf_counter())
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        """Between each two."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if not self.on_gpu:
            return [after - before for before, after in pairs]
        self.marks[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]

    def median(self) -> float:
        return statistics.median(self.seconds())


def seconds(device: torch.device) -> Callable[..., float]:
    """`tuning.seconds`, or something like it on a CPU: the median time of a call."""
    from minillm.kernels import tuning

    def on_cpu(call: Callable[[], Any], rounds: int = 1) -> float:
        marks = Marks(device)
        marks.mark()
        call()
        marks.mark()
        return marks.median()

    return tuning.seconds if device.type == "cuda" else on_cpu
