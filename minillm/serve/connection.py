"""Uvicorn with what it lacks: a time limit for the head of a request, and a way to stop that lets answers end.

SIGTERM or Ctrl-C: no more requests are taken (503), those under way have `drain_timeout` seconds, then they are ended
with an error; a second signal ends all at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from minillm.serve.service import Service
from minillm.serve.settings import MAX_HEADERS, Settings

GRACE = 5  # seconds that connections have to close once their requests have ended


class Protocol(H11Protocol):
    """Closes a connection that does not say what it wants in time, and holds nothing back that is to be sent."""

    head_timeout = 10.0
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio does this only for sockets that name their protocol: without it each answer waits 40 ms for an ACK
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The clock runs while a head is awaited, from its first byte or that of the connection on."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._head is None:
            self._head = self.loop.call_later(self.head_timeout, self._late)

    def _forget(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _late(self) -> None:
        self._head = None
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.transport.close()


class Server(uvicorn.Server):
    """Stops by draining. `stopped_by` is the signal that asked for it."""

    def __init__(self, app: ASGIApp, service: Service, host: str, port: int):
        settings = service.settings
        super().__init__(_config(app, settings, host, port))
        self.service, self.stopped_by = service, 0
        self.port = port  # 0 until it listens, where any will do
        self.ready = threading.Event()
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self.port = self.servers[0].sockets[0].getsockname()[1]
            self.ready.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.stopped_by:
            self.should_exit = self.force_exit = True
            return
        self.stopped_by = sig
        self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Begin to drain, on the server's own loop."""
        self._draining = self._draining or self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        await self.service.drain(self.service.settings.drain_timeout)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def _config(app: ASGIApp, settings: Settings, host: str, port: int) -> uvicorn.Config:
    kind = type("Timed", (Protocol,), {"head_timeout": settings.header_timeout})
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # requests have lines of their own (doors.py)
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=kind,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(settings.idle_timeout),
        timeout_graceful_shutdown=GRACE,
        limit_concurrency=settings.max_connections,
        h11_max_incomplete_event_size=MAX_HEADERS,
    )
