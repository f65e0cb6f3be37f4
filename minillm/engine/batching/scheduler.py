"""Which tokens go through the model in the next pass.

Requests under way come first, the oldest before the others: those that are being decoded with a token each, then pieces
of those that are being read, up to a budget of tokens. What is left of it is for requests that wait, each as soon as
there are blocks for all that it has. Where a request under way finds no block, the newest one gives up all of its own,
to be computed anew later; the oldest never does, so that there is always one that comes to its end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from minillm.engine.batching.request import Request
from minillm.engine.batching.store import Store

Work = list[tuple[Request, int]]  # requests, each with how many of its tokens go through
NO_ROOM = "{0:,} tokens fill the cache, which has room for {1:,}; give it more memory, or ask for fewer new tokens"


@dataclass
class Scheduler:
    """Requests under way, oldest first, and those that wait. At most `max_rows` are under way at a time; a pass has at
    most `budget` tokens. Where pieces are `fixed`, none depends on what else is under way: a prompt comes in pieces of
    `budget`, and what followed it token by token, as it was written."""

    store: Store
    max_rows: int
    budget: int
    fixed: bool = False
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    failed: list[Request] = field(default_factory=list)  # in this plan

    def plan(self, reading: int | None = None) -> Work:
        """The next pass, with a place for every token: single tokens first. At most `reading` of them are of prompts,
        if any request is being decoded."""
        self._sweep()
        self.failed = []
        left, work = self.budget, Work()
        for request in [each for each in self.running if each.unread == 1]:
            if self._placed(request, 1):
                work.append((request, 1))
        left -= len(work)
        if work and reading is not None:
            left = min(left, reading)
        for request in [each for each in self.running if each.unread > 1]:
            left -= self._read(request, left, work)
        while left > 0 and len(self.running) < self.max_rows and (joins := self._next()) is not None:
            left -= self._read(joins, left, work)
        under_way = {*self.running}  # a request in `work` may have given up its place meanwhile
        kept = [pair for pair in work if pair[0] in under_way]
        return sorted(kept, key=lambda pair: pair[1] > 1 or pair[0].inserting)

    def again(self) -> Work:
        """The next pass where all that is under way is being decoded and there are blocks for it."""
        for request in self.running:
            self.store.grow(request, request.computed + 1)
        return [(request, 1) for request in self.running]

    def _read(self, request: Request, left: int, work: Work) -> int:
        """Put a piece of a request into the pass, as long as something is left; returns how long it is."""
        count = min(left, self.store.ahead(request))
        if self.fixed:
            count = min(self.budget, max(len(request.row.prompt) - request.computed, 1))
        if request.row.inserted is not None:
            count = request.row.inserted.piece(request.computed, count)
        if count < 1 or not self._placed(request, count):
            return 0
        work.append((request, count))
        return count

    def _placed(self, request: Request, count: int) -> bool:
        """Whether there are blocks for so many more tokens, which newer requests may have to give up."""
        if request not in self.running:
            return False
        while not self.store.grow(request, request.computed + count):
            newest = self.running[-1]
            if newest is request and len(self.running) == 1:
                request.error = NO_ROOM.format(request.computed, self.store.most())
                self.failed.append(request)
                return False
            self._preempt(newest)
            if newest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self.store.release(request)
        request.preempted += 1
        self.waiting.insert(0, request)

    def _next(self) -> Request | None:
        """The request whose turn it is, where there is room for all that it has; it is under way then. Those whose
        beginning another is reading just now wait for it."""
        under_way = [each.client for each in self.running]
        turns = sorted(
            (each for each in self.waiting if not each.follows),
            key=lambda each: (not each.preempted, -each.priority, under_way.count(each.client), each.number),
        )
        request = next((each for each in turns if not self.store.coming(each, self.running)), None)
        if request is None:
            return None
        self.store.recall(request)
        if not self.store.enough(request, request.length + min(request.row.remaining, 1)):
            self.store.release(request)
            return None
        self.join(request)
        return request

    def join(self, request: Request) -> None:
        """It is under way now."""
        self.waiting.remove(request)
        self.running.append(request)
        request.times.started = request.times.started or time.monotonic()

    def followers(self, request: Request) -> list[Request]:
        """Those that wait for what it has read, as many as may join; not those whose prompt somebody wants to see."""
        waiting = [
            each for each in self.waiting if each.leader is request and not each.finished and each.reader is None
        ]
        return waiting[: self.max_rows - len(self.running)]

    def _sweep(self) -> None:
        """Let go of what has ended, or is late; begin anew what LongRoPE now turns otherwise."""
        for request in [*self.running, *self.waiting]:
            if not request.finished and request.late:
                request.row.finish_reason = "deadline"
            if request.finished:
                self.store.release(request)
            elif request.computed and request.salted != self.store.salt(request):
                self.store.release(request)
                self.store.recall(request)
        self.running = [each for each in self.running if not each.finished]
        self.waiting = [each for each in self.waiting if not each.finished]
