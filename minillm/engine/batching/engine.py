"""Requests in, tokens out: continuous batching (Yu et al., OSDI 2022) over a cache in blocks.

Each step is one pass of the model over a token of each request that is being decoded and pieces of those that are being
read (`scheduler.py`), with what each has in blocks that others may share (`store.py`). A request gets what it would get
alone, whatever else is under way: its settings, seed and history are its own (`choosing.py`).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.engine.batching.pace import Pace
from minillm.engine.batching.passes import Single, mixed
from minillm.engine.batching.recorded import Recorded
from minillm.engine.batching.request import Request
from minillm.engine.batching.scheduler import Scheduler, Work
from minillm.engine.batching.store import SIZE, Store, counts, nbytes, positions_in, room_left
from minillm.engine.choosing import NOT_FINITE, Chooser
from minillm.engine.completion import Completion, Timings
from minillm.guard import memory
from minillm.model.decoder import Decoder

MAX_ROWS = 32
BUDGET = 2048  # tokens of a pass: bounds masks and activations
LAG = 4  # steps that a GPU is ahead of what the host has read, so that it never waits to be asked

Found = list[tuple[Request, str]]  # requests that have a new token, each with the text that it adds


class Engine:
    """Runs requests over a model. `positions` is how many tokens of all requests together have room in the cache.

    With `deterministic` each request goes through the model by itself, in pieces of a fixed length, and its logits are
    bit for bit those that it has alone; else products of several rows may round otherwise. `share` lets requests use
    what others have computed of the same prefix. Tokens are read `lag` steps late (default: 0 on a CPU) while requests
    are only being decoded, and what came behind a stop is thrown away. With a `pace` prompts are read beside requests
    that are being decoded in pieces so small that a pass takes about so many seconds.
    """

    def __init__(
        self,
        model: Decoder,
        positions: int,
        max_rows: int = MAX_ROWS,
        budget: int = BUDGET,
        deterministic: bool = False,
        share: bool = True,
        lag: int | None = None,
        pace: float | None = None,
        timings: Timings | None = None,
    ):
        self.model, self.deterministic, self.timings = model, deterministic, timings or Timings()
        self.device = model.embedding.weight.device
        self.lag = (LAG if self.device.type == "cuda" else 0) if lag is None else lag
        self.store = Store(model, counts(model, positions, max_rows, budget), budget, share and not deterministic)
        self.scheduler = Scheduler(self.store, max_rows, budget, fixed=deterministic)
        self.recorded = Recorded(model, self.store)
        self.pace = None if pace is None else Pace(pace)
        self.numbers = itertools.count()
        self.chooser: tuple[list[Request], Chooser] | None = None
        self.flying: deque[tuple[list[Request], Fetched]] = deque()
        self.drawn: Tensor | None = None  # the last of them, int64 [n]

    def add(self, row: Completion, **how: Any) -> Request:
        """Take in a request; `how` are fields of `Request`."""
        request = self.request(row, **how)
        self.scheduler.waiting.append(request)
        return request

    def request(self, row: Completion, **how: Any) -> Request:
        """A request with the next number, which is not taken in yet."""
        return Request(row, number=next(self.numbers), **how)

    def check(self, row: Completion) -> None:
        """Raise ValueError for a request that can never come to its end."""
        needed, room = len(row.prompt) + row.max_new_tokens - 1, self.store.most()
        if needed > room:
            raise ValueError(
                f"the prompt has {len(row.prompt):,} tokens and {row.max_new_tokens:,} new ones are asked for, the "
                f"cache has room for {room:,}; ask for fewer, or give the cache more memory"
            )

    def abandon(self, reason: str) -> Found:
        """End all requests under way with an error, as a step over them has failed; where none was, those that wait."""
        self.flying.clear()
        self.chooser, under_way = None, [*(self.scheduler.running or self.scheduler.waiting)]
        for request in under_way:
            request.flying, request.error = 0, reason
        return [(request, "") for request in under_way]

    def cancel(self, request: Request) -> None:
        """End a request before the next step; one that has ended stays as it is."""
        if not request.finished:
            request.row.finish_reason = "cancelled"

    @property
    def busy(self) -> bool:
        """Whether any request is under way or waits."""
        return bool(self.scheduler.running or self.scheduler.waiting or self.flying)

    @torch.inference_mode()
    def step(self) -> Found:
        """One pass, or one that was made before and is read now."""
        started = time.perf_counter()
        if self.flying and (len(self.flying) > self.lag or not self._steady()):
            work, found = Work(), self._landed()
        else:
            work = self._planned()
            parts = [[each] for each in work] if self.deterministic else [work] if work else []
            found = [pair for part in parts for pair in self._pass(part)]
            found += [(each, "") for each in self.scheduler.failed]
        seconds = time.perf_counter() - started
        if self.pace is not None and work:
            self.pace.saw(work, seconds)
        self._count(seconds, work, found)
        return found

    def _planned(self) -> Work:
        if self.flying:
            return self.scheduler.again()
        return self.scheduler.plan(None if self.pace is None else self.pace.budget(BUDGET, SIZE))

    def _pass(self, work: Work) -> Found:
        requests = [request for request, _ in work]
        known = [request for request, count in work if count == request.unread]
        if all(count == 1 for _, count in work):
            drawn = self.drawn.clamp(min=0) if self.flying and self.drawn is not None else None
            logits_NV = self.recorded(Single.of(requests, self.store, self.device, drawn))
        else:
            last = [end - 1 for end in itertools.accumulate(count for _, count in work)]
            wanted = [at for at, (request, count) in zip(last, work, strict=True) if count == request.unread]
            x_1NE = mixed(self.model, work, self.store)
            logits_NV = self.model.logits(x_1NE[:, wanted])[0] if wanted else x_1NE[0, :0]
        for request, count in work:
            self.store.advance(request, count)
        if not known:
            return []
        if self.chooser is None or self.chooser[0] != known:
            self.chooser = known, Chooser(self.model, [each.row for each in known])
        self.drawn = self.chooser[1](logits_NV)
        self.flying.append((known, Fetched(self.drawn)))
        for request in known:
            request.flying += 1
        return [] if self._steady() and len(self.flying) <= self.lag else self._landed()

    def _steady(self) -> bool:
        """Whether the next pass is known before the tokens of the last: all that is under way is decoded and goes on,
        nothing can join, and there are blocks for all."""
        running = self.scheduler.running
        if not self.lag or self.deterministic or self.store.long or self.chooser is None or self.chooser[0] != running:
            return False
        joins = self.scheduler.waiting and len(running) < self.scheduler.max_rows
        goes_on = all(not each.finished and not each.late and each.row.remaining > each.flying for each in running)
        return goes_on and not joins and all(each.free >= len(running) for each in self.store.groups.values())

    def _landed(self) -> Found:
        requests, fetched = self.flying.popleft()
        found = []
        for request, token in zip(requests, fetched.read(), strict=True):
            request.flying -= 1
            if request.finished:
                continue
            if token < 0:
                request.error = NOT_FINITE
            found.append((request, "" if request.error else request.row.push(token)))
        return found

    def _count(self, seconds: float, work: Work, found: Found) -> None:
        """A pass over prompts counts for them, with the first token behind each; what is read again for the text."""
        new = [(request, count) for request, count in work if not request.row.token_ids[1:]]
        read = sum(count for request, count in new if request.computed <= len(request.row.prompt))
        total = sum(count for _, count in work)
        share = read / total if total else 0.0
        self.timings.prompt_seconds += share * seconds
        self.timings.prompt_tokens += read
        self.timings.decode_seconds += (1 - share) * seconds
        later = sum(len(request.row.token_ids) > 1 for request, _ in found)
        self.timings.decode_tokens += later
        self.timings.decode_steps += later > 0


@torch.inference_mode()
def generate(
    model: Decoder,
    rows: Sequence[Completion],
    timings: Timings,
    max_rows: int = MAX_ROWS,
    deterministic: bool = False,
    lag: int | None = None,
) -> Iterator[tuple[int, str]]:
    """Run completions, at most `max_rows` at a time, until each has finished; yields (row, new text) as it comes.
    Raises ValueError where a row cannot go on: its logits are not numbers to choose by, or the cache has no room."""
    max_rows = min(max_rows, len(rows))
    positions, share = room_for(model, rows, max_rows), len(rows) > 1
    engine = Engine(model, positions, max_rows, deterministic=deterministic, share=share, lag=lag, timings=timings)
    numbers = {engine.add(row): index for index, row in enumerate(rows)}
    while engine.busy:
        for request, text in engine.step():
            if request.error:
                raise ValueError(request.error)
            if text:
                yield numbers[request], text


def room_for(model: Decoder, rows: Sequence[Completion], max_rows: int) -> int:
    """Positions for the largest requests that can be under way together, or as many as fit into what memory is left.
    Raises ValueError where a prompt alone does not."""
    sizes = sorted((-(-(len(row.prompt) + row.max_new_tokens) // SIZE) * SIZE for row in rows), reverse=True)
    wanted, least = sum(sizes[:max_rows]), max(len(row.prompt) for row in rows) + SIZE
    if (left := room_left(model)) is None:
        return wanted
    fits = positions_in(model, left, max_rows, BUDGET)
    if fits < least:
        needed = nbytes(model, counts(model, least, max_rows, BUDGET))
        memory.refuse(needed, f"a cache of {least:,} positions", "take a shorter prompt")
    return min(wanted, max(fits, least))


class Fetched:
    """Tokens `[n]` on their way to the host; on a CPU they are there."""

    def __init__(self, tokens_N: Tensor):
        self.tokens_N, self.arrived = tokens_N, None
        if tokens_N.device.type == "cuda":
            self.tokens_N = torch.empty(tokens_N.shape, dtype=tokens_N.dtype, pin_memory=True)
            self.tokens_N.copy_(tokens_N, non_blocking=True)
            self.arrived = torch.cuda.current_stream(tokens_N.device).record_event()

    def read(self) -> list[int]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tokens_N.tolist()
