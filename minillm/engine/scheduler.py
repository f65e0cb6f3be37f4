"""Which tokens go through the model in the next pass.

Requests under way come first, the oldest before the others: those that are being decoded with a token each, then pieces
of those that are being read, up to a budget of tokens. What is left of it is for requests that wait, each as soon as
there are blocks for all that it has. Where a request under way finds no block, the newest one gives up all of its own,
to be computed anew later; the oldest never does, so that there is always one that comes to its end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from minillm.engine.request import Request
from minillm.engine.store import Store

Work = list[tuple[Request, int]]  # requests, each with how many of its tokens go through


@dataclass
class Scheduler:
    """Requests under way, oldest first, and those that wait. At most `max_rows` are under way at a time; a pass has at
    most `budget` tokens, and no piece more."""

    store: Store
    max_rows: int
    budget: int
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)

    def add(self, request: Request) -> None:
        """Let a request wait. Raises ValueError for one that can never come to its end."""
        needed, room = len(request.row.prompt) + request.row.max_new_tokens - 1, self.store.most()
        if needed > room:
            raise ValueError(
                f"the prompt has {len(request.row.prompt):,} tokens and {request.row.max_new_tokens:,} new ones are "
                f"asked for, the cache has room for {room:,}; ask for fewer, or give the cache more memory"
            )
        self.waiting.append(request)

    def plan(self, budget: int | None = None) -> Work:
        """The next pass, with a place for every token: single tokens first."""
        self._sweep()
        left = self.budget if budget is None else budget
        work: Work = []
        for request in [each for each in self.running if each.unread == 1]:
            if self._placed(request, 1):
                work.append((request, 1))
        left -= len(work)
        for request in [each for each in self.running if each.unread > 1]:
            left -= self._read(request, left, work)
        while left > 0 and len(self.running) < self.max_rows and (request := self._next()) is not None:
            left -= self._read(request, left, work)
        return [pair for pair in work if pair[0].tables]  # those that were not given up meanwhile

    def _read(self, request: Request, left: int, work: Work) -> int:
        """Put a piece of a request into the pass, as long as something is left; returns how long it is."""
        count = min(left, self.store.ahead(request))
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
            if newest is request and request.unread > 1 and len(self.running) > 1:
                return False  # it waits for what the older ones will give back
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
        """The request whose turn it is, where there is room for all that it has; it is under way then."""
        if not self.waiting:
            return None
        under_way = [each.client for each in self.running]
        request = min(
            self.waiting,
            key=lambda each: (not each.preempted, -each.priority, under_way.count(each.client), each.number),
        )
        self.store.recall(request)
        if not self.store.enough(request, request.length + 1):
            self.store.release(request)
            return None
        self.waiting.remove(request)
        self.running.append(request)
        return request

    def _sweep(self) -> None:
        """Let go of what has ended, or is late; begin anew what LongRoPE now turns otherwise."""
        now = time.monotonic()
        for request in [*self.running, *self.waiting]:
            if not request.finished and request.deadline is not None and now > request.deadline:
                request.row.finish_reason = "deadline"
            if request.finished:
                self.store.release(request)
            elif request.computed and request.salted != self.store.salt(request):
                self.store.release(request)
                self.store.recall(request)
        self.running = [each for each in self.running if not each.finished]
        self.waiting = [each for each in self.waiting if not each.finished]
