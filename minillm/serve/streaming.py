"""Answers that are sent while they are written: server-sent events, or a JSON object a line.

A comment or an event of no meaning goes out when nothing has come for a while, as proxies cut connections that are
silent. A client that leaves, or that takes nothing any more, ends its request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minillm.serve.answering import Job
from minillm.serve.errors import Refusal
from minillm.serve.patience import Patience

KEEP_ALIVE = b": keep-alive\n\n"
SSE = {"cache-control": "no-cache", "x-accel-buffering": "no", "content-type": "text/event-stream; charset=utf-8"}
LINES = {"cache-control": "no-cache", "x-accel-buffering": "no", "content-type": "application/x-ndjson"}
Chunks = AsyncGenerator[bytes, None]


def data(value: Any, event: str | None = None) -> bytes:
    """A server-sent event."""
    named = f"event: {event}\n".encode() if event else b""
    return named + b"data: " + msgspec.json.encode(value) + b"\n\n"


def line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


class Stream(Response):
    """The chunks of a job, `broken(refusal)` at its end where it could not go on."""

    def __init__(
        self, job: Job, chunks: Chunks, broken: Callable[[Refusal], bytes], headers: dict[str, str], patience: float
    ):
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self.job, self.chunks, self.broken, self.patience = job, chunks, broken, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        taking = Patience(self.patience, lambda: group.cancel_scope.cancel())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with anyio.create_task_group() as group:
                group.start_soon(_left, receive, group.cancel_scope)
                await self._send_all(send, taking)
                group.cancel_scope.cancel()
            if taking.over:
                scope["state"]["record"]["client"] = "took nothing any more"
        finally:
            taking.close()
            with anyio.CancelScope(shield=True):
                await self.chunks.aclose()
            self.job.close()

    async def _send_all(self, send: Send, taking: Patience) -> None:
        async def give(chunk: bytes, more: bool = True) -> None:
            taking.start()
            await send({"type": "http.response.body", "body": chunk, "more_body": more})
            taking.stop()

        try:
            async for chunk in self.chunks:
                await give(chunk)
        except Refusal as refusal:
            await give(self.broken(refusal))
        await give(b"", more=False)


async def _left(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
