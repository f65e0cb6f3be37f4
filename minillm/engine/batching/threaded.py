"""An engine in a thread of its own, for callers in any thread or event loop (`minillm.Engine`).

    engine = minillm.Engine(llm)
    for piece in engine.submit(llm.completion("Once upon a time")): ...
    async for piece in engine.submit(llm.completion("Once upon a time")): ...

Callers leave messages, which the thread reads between steps; nothing else is shared. The loops of a pass let go of
Python's lock, so a process of its own would gain nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from minillm.engine.batching.engine import Engine
from minillm.engine.batching.request import Request
from minillm.engine.batching.room import BUDGET, MAX_ROWS, bytes_for, positions_in
from minillm.engine.completion import Completion
from minillm.model.decoder import Decoder

PACE = 0.2  # seconds that a pass may take while requests are being decoded


class Busy(Exception):
    """No more requests are taken now."""


class Failed(Exception):
    """A request that could not go on, and why."""


class Ticket:
    """A request that was handed in. Iterating, in either way, gives its text piece by piece, to its end; raises
    `Failed` where it could not go on. `row` has all that has come so far, and nothing more once it has `ended`."""

    def __init__(self, request: Request):
        self.request, self.row, self.ended = request, request.row, False
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.listener: tuple[asyncio.AbstractEventLoop, Callable[[], Any]] | None = None

    def listen(self, heard: Callable[[], Any]) -> None:
        """Call this, from the running event loop, when `row` has something new, any token, and when it has ended."""
        self.listener = asyncio.get_running_loop(), heard
        if self.ended or self.row.token_ids:  # it came before anybody listened
            self.listener[0].call_soon(heard)

    def put(self, piece: str | None) -> None:
        """A piece, or None for the end. Who listens in an event loop is to be told after it (`tell`)."""
        self.ended = piece is None
        if self.listener is None or self.ended:
            self._pieces.put(piece)

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            if piece:
                yield piece
        self._raise()

    async def __aiter__(self) -> AsyncIterator[str]:
        given, ended, there = 0, False, asyncio.Event()
        self.listen(there.set)
        try:
            while not ended:
                await there.wait()
                there.clear()
                ended = self.ended  # before the text is looked at, all of which is there then
                if piece := self.row.text[given:]:
                    given += len(piece)
                    yield piece
        finally:
            self.listener = None
        self._raise()

    def _raise(self) -> None:
        if self.request.error is not None:
            raise Failed(self.request.error)


def tell(tickets: Iterable[Ticket]) -> None:
    """Tell who listens to these, once an event loop: each call interrupts it, and may cost the caller Python's lock."""
    found: dict[asyncio.AbstractEventLoop, list[Callable[[], Any]]] = {}
    for ticket in tickets:
        if (listener := ticket.listener) is not None:
            found.setdefault(listener[0], []).append(listener[1])
    for loop, listeners in found.items():
        with contextlib.suppress(RuntimeError):  # a loop that was closed, with nobody left in it
            loop.call_soon_threadsafe(_call, listeners)


def _call(listeners: Sequence[Callable[[], Any]]) -> None:
    for each in listeners:
        each()


class Loaded(Protocol):
    """What is needed of a loaded checkpoint: the model, and how many bytes will be loaded later."""

    model: Decoder

    @property
    def owed(self) -> int: ...


class AsyncEngine:
    """Takes requests from anywhere. `cache_memory` is what keys and values may take: bytes, or a share of the memory
    that is left (a number up to 1; default a half). At most `max_rows` requests are under way and `max_waiting` wait.
    Other options are those of `engine.Engine`. Raises ValueError for a cache that cannot be."""

    def __init__(
        self,
        llm: Loaded,
        cache_memory: float | None = None,
        max_rows: int = MAX_ROWS,
        max_waiting: int = 1000,
        pace: float | None = PACE,
        **options: Any,
    ):
        positions = positions_in(llm.model, bytes_for(llm.model, cache_memory, llm.owed), max_rows, BUDGET)
        self.engine = Engine(llm.model, positions, max_rows, pace=pace, **options)
        self.max_waiting = max_waiting
        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[Request, Ticket] = {}
        self._count, self._lock = 0, threading.Lock()  # of requests that have not ended
        self._idle = threading.Event()
        self._idle.set()
        self._open, self._last = True, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="minillm engine", daemon=True)
        self._thread.start()

    def submit(self, row: Completion, **how: Any) -> Ticket:
        """Hand in a request; `how` are fields of `Request` (priority, client, salt, deadline). Raises ValueError for
        one that can never have room, `Busy` where too many wait or the engine is being closed."""
        return self.submit_many([row], **how)[0]

    def submit_many(self, rows: Sequence[Completion], **how: Any) -> list[Ticket]:
        """Hand in requests with the same prompt: it is read once, for the first, and the others take it over."""
        for row in rows:
            self.engine.check(row)
            if row.prompt != rows[0].prompt:
                raise ValueError("requests that are handed in together have the same prompt; submit each of these")
        first, *others = [self.engine.request(row, **how) for row in rows]
        for other in others:
            other.leader = first
        tickets = [Ticket(request) for request in (first, *others)]
        with self._lock:
            if not self._open:
                raise Busy("the engine is closing and takes no more requests")
            if self._count + len(tickets) > self.engine.scheduler.max_rows + self.max_waiting:
                raise Busy(f"all {self.max_waiting:,} places in the queue are taken; try again later")
            if not self._count:
                self._last = time.monotonic()  # rest was no standing still
            self._count += len(tickets)
            self._idle.clear()
        self._messages.put(lambda: self._add(tickets))
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """End a request before the next step; it is no error if it has ended."""
        self._messages.put(lambda: self.engine.cancel(ticket.request))

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait until all have ended; False where that took longer."""
        with self._lock:
            self._open = False
        return self._idle.wait(timeout)

    def close(self) -> None:
        """End what is under way, and the thread."""
        with self._lock:
            self._open = False
        self._messages.put(self._stop)
        self._thread.join()

    def health(self) -> dict[str, Any]:
        """Whether the thread lives; how many requests are under way and wait; and how many seconds ago the last step
        was done, 0 where there is nothing to do."""
        running, waiting = len(self.engine.scheduler.running), len(self.engine.scheduler.waiting)
        since = time.monotonic() - self._last if self._count else 0.0
        return {"alive": self._thread.is_alive(), "running": running, "waiting": waiting, "seconds_since_step": since}

    def _run(self) -> None:
        self._going = True
        while self._going:
            while not self._messages.empty() or not self.engine.busy:
                self._messages.get()()
                if not self._going:
                    return
            try:
                found = self.engine.step()
            except Exception as error:  # the requests of this step end, and the engine lives on
                found = self.engine.abandon(f"a step failed: {type(error).__name__}: {error}")
            changed = {request: self._tickets[request] for request, _ in found}
            for request, piece in found:
                changed[request].put(piece)
            self._settle(changed)

    def _settle(self, changed: dict[Request, Ticket]) -> None:
        """Let go of the requests that have ended, and tell who listens to these or to what has `changed`."""
        self._last = time.monotonic()
        for request in [each for each in self._tickets if each.finished]:
            changed[request] = self._tickets.pop(request)
            changed[request].put(None)
            with self._lock:
                self._count -= 1
                if not self._count:
                    self._idle.set()
        tell(changed.values())

    def _add(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self.engine.scheduler.waiting.append(ticket.request)
            self._tickets[ticket.request] = ticket
        self._last = time.monotonic()

    def _stop(self) -> None:
        self._going = False
        for request in self._tickets:
            self.engine.cancel(request)
        self._settle({})
