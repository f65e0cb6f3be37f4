"""Requests in, tokens out: continuous batching (Yu et al., OSDI 2022, Orca) over a cache in blocks.

Each step is one pass of the model over a token of each request that is being decoded and pieces of those that are being
read (`scheduler.py`), with what each has in blocks that others may share (`store.py`). A request gets what it would get
alone, whatever else is under way: its settings, seed and history are its own (`choosing.py`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minillm.engine.choosing import Chooser
from minillm.engine.completion import Completion, Timings
from minillm.engine.passes import Single, mixed
from minillm.engine.recorded import Recorded
from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler, Work
from minillm.engine.store import SIZE, Store, counts, nbytes
from minillm.guard import memory
from minillm.model.decoder import Decoder

MAX_ROWS, LARGE = 32, 2**26
BUDGET = 2048  # tokens of a pass: bounds masks and activations
NOT_FINITE = (
    "the model's logits are not finite: its values overflow in this dtype or its weights are damaged; try dtype float32"
)


class Engine:
    """Runs requests over a model. `positions` is how many tokens of all requests together have room in the cache.

    With `deterministic` each request goes through the model by itself, in pieces of a fixed length, and its logits are
    bit for bit those that it has alone; else products of several rows may round otherwise. `share` lets requests use
    what others have computed of the same prefix.
    """

    def __init__(
        self,
        model: Decoder,
        positions: int,
        max_rows: int = MAX_ROWS,
        budget: int = BUDGET,
        deterministic: bool = False,
        share: bool = True,
        timings: Timings | None = None,
    ):
        self.model, self.deterministic, self.timings = model, deterministic, timings or Timings()
        self.store = Store(model, counts(model, positions, max_rows, budget), budget, share and not deterministic)
        self.scheduler = Scheduler(self.store, max_rows, budget)
        self.recorded = Recorded(model, self.store)
        self.numbers = itertools.count()
        self.chooser: tuple[list[Request], Chooser] | None = None

    def add(self, row: Completion, **how: object) -> Request:
        """Take in a request; `how` are fields of `Request`. Raises ValueError for one that has no room."""
        request = Request(row, number=next(self.numbers), **how)  # type: ignore[arg-type]
        self.scheduler.add(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request before the next step; one that has ended stays as it is."""
        if not request.finished:
            request.row.finish_reason = "cancelled"

    @property
    def busy(self) -> bool:
        """Whether any request is under way or waits."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    @torch.inference_mode()
    def step(self) -> list[tuple[Request, str]]:
        """One pass; the requests that have a new token, each with the text that it adds."""
        started = time.perf_counter()
        work = self.scheduler.plan()
        if not work:
            return []
        parts = [[each] for each in work] if self.deterministic else [work]
        found = [pair for part in parts for pair in self._pass(part)]
        seconds, read = time.perf_counter() - started, sum(count for _, count in work if count > 1)
        self._count(seconds, read, len(found))
        return found

    def _pass(self, work: Work) -> list[tuple[Request, str]]:
        known = [request for request, count in work if count == request.unread]
        if all(count == 1 for _, count in work):
            single = Single.of([request for request, _ in work], self.store, self.model.embedding.weight.device)
            logits_NV = self.recorded(single)
        else:
            x_1NE = mixed(self.model, work, self.store)
            last = [end - 1 for end in itertools.accumulate(count for _, count in work)]
            wanted = [at for at, (request, count) in zip(last, work, strict=True) if count == request.unread]
            logits_NV = self.model.logits(x_1NE[:, wanted])[0] if wanted else x_1NE[0, :0]
        for request, count in work:
            self.store.advance(request, count)
        return self._pushed(known, logits_NV) if known else []

    def _pushed(self, requests: list[Request], logits_NV: Tensor) -> list[tuple[Request, str]]:
        if self.chooser is None or self.chooser[0] != requests:
            self.chooser = requests, Chooser(self.model, [each.row for each in requests])
        found = []
        for request, token in zip(requests, self.chooser[1](logits_NV).tolist(), strict=True):
            if token < 0:
                request.error = NOT_FINITE
                found.append((request, ""))
            else:
                found.append((request, request.row.push(token)))
        return found

    def _count(self, seconds: float, read: int, chosen: int) -> None:
        """A pass that reads counts for prompts, as does the first token behind each."""
        if read:
            self.timings.prompt_seconds += seconds
            self.timings.prompt_tokens += read
        else:
            self.timings.decode_seconds += seconds
            self.timings.decode_tokens += chosen
            self.timings.decode_steps += 1


@torch.inference_mode()
def generate(
    model: Decoder,
    rows: Sequence[Completion],
    timings: Timings,
    max_rows: int = MAX_ROWS,
    deterministic: bool = False,
) -> Iterator[tuple[int, str]]:
    """Run completions until each has finished; yields (row, new text) as it comes. Raises ValueError where the logits
    of a row are not numbers to choose by."""
    engine = Engine(model, _positions(model, rows, max_rows), min(max_rows, len(rows)), deterministic=deterministic, timings=timings)
    numbers = {engine.add(row): index for index, row in enumerate(rows)}
    while engine.busy:
        for request, text in engine.step():
            if request.error:
                raise ValueError(request.error)
            if text:
                yield numbers[request], text


def _positions(model: Decoder, rows: Sequence[Completion], max_rows: int) -> int:
    """Room for the largest requests that can be under way together, or as many as fit into the memory that is left."""
    sizes = sorted((-(-(len(row.prompt) + row.max_new_tokens) // SIZE) * SIZE for row in rows), reverse=True)
    wanted, left = sum(sizes[:max_rows]), memory.available()
    def needed(positions: int) -> int:
        return nbytes(model, counts(model, positions, min(max_rows, len(rows)), BUDGET))
    if model.embedding.weight.device.type == "cpu" and left is not None and needed(wanted) > left:
        wanted = sizes[0]
        if needed(wanted) > LARGE: memory.refuse(needed(wanted), f"a cache of {wanted:,} positions", "ask for fewer new tokens or a shorter prompt")
    return wanted
