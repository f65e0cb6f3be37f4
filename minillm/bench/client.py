"""A client of streamed answers over HTTP/1.1: one connection a request, and when each of its pieces came.

POST URL/chat/completions or URL/completions -> lines "data: {…}" up to "data: [DONE]"
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

MAX_LINE = 4 << 20  # bytes
MAX_HEADERS = 200
SAYS = ("content", "reasoning_content", "reasoning", "tool_calls")  # of a delta: what something is in


class Refused(Exception):
    """Why a request has no answer, in a few words."""


@dataclass
class Answer:
    """Seconds are of time.perf_counter(). `times` has one for each chunk with something in it."""

    began: float
    times: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int | None = None
    tokens: int | None = None  # as the server counts them
    error: str | None = None


def address(url: str) -> SplitResult:
    """A server's address, without the /v1 that clients are given. Raises ValueError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ValueError(f"--url {url!r} is no address; give one such as http://127.0.0.1:8000")
    return parts._replace(path=parts.path.rstrip("/").removesuffix("/v1"))


async def ask(where: SplitResult, path: str, body: Mapping[str, Any], key: str | None, seconds: float) -> Answer:
    """One streamed answer; what goes wrong is its `error`."""
    answer = Answer(time.perf_counter())
    try:
        await asyncio.wait_for(_ask(answer, where, path, body, key), seconds)
    except Refused as error:
        answer.error = str(error)
    except asyncio.TimeoutError:
        answer.error = f"no end within {seconds:.0f} s"
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        answer.error = f"{type(error).__name__}: {error}"[:200]
    answer.ended = time.perf_counter()
    return answer


async def status(where: SplitResult, path: str) -> int | None:
    """What a server says to GET of a path; None where it says nothing."""
    try:
        async with _connected(where) as (reader, writer):
            writer.write(f"GET {path} HTTP/1.1\r\nhost: {_host(where)}\r\nconnection: close\r\n\r\n".encode())
            return (await _head(reader))[0]
    except (OSError, EOFError, Refused):
        return None


@contextlib.asynccontextmanager
async def _connected(where: SplitResult) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    secure = ssl.create_default_context() if where.scheme == "https" else None
    port = where.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(where.hostname, port, ssl=secure, limit=MAX_LINE)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _host(where: SplitResult) -> str:
    return where.netloc.rpartition("@")[2]


async def _ask(answer: Answer, where: SplitResult, path: str, body: Mapping[str, Any], key: str | None) -> None:
    async with _connected(where) as (reader, writer):
        data = json.dumps(body).encode()
        lines = [f"POST {where.path}/v1/{path} HTTP/1.1", f"host: {_host(where)}", "content-type: application/json"]
        lines += [f"content-length: {len(data)}", "accept: text/event-stream", "connection: close"]
        lines += [f"authorization: Bearer {key}"] if key else []
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + data)
        answer.began = time.perf_counter()
        await writer.drain()
        code, headers = await _head(reader)
        pieces = _pieces(reader, headers)
        if code != 200:
            said = b"".join([piece async for piece in pieces])[:2000].decode(errors="replace")
            raise Refused(f"{code}: {_message(said)}")
        await _events(answer, pieces)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """The status of an answer, and its headers in lower case."""
    first = (await reader.readline()).decode("latin-1").split(None, 2)
    if len(first) < 2 or not first[0].startswith("HTTP/") or not first[1].isdigit():
        raise Refused("the server speaks no HTTP/1.1")
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        name, colon, value = (await reader.readline()).decode("latin-1").partition(":")
        if not colon:
            return int(first[1]), headers
        headers[name.strip().lower()] = value.strip().lower()
    raise Refused(f"more than {MAX_HEADERS} headers")


async def _pieces(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """The body as it comes."""
    if "chunked" not in headers.get("transfer-encoding", ""):
        left = int(headers.get("content-length", 1 << 62))
        while left > 0 and (piece := await reader.read(min(left, 1 << 16))):
            left -= len(piece)
            yield piece
        return
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _events(answer: Answer, pieces: AsyncIterator[bytes]) -> None:
    """Take an answer's chunks until it ends. Raises Refused where it does not."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data.startswith(b"[DONE]"):
                return
            if line.startswith(b"data:"):
                _take(answer, json.loads(data))
    raise Refused("the answer ended before its end")


def _take(answer: Answer, chunk: Mapping[str, Any]) -> None:
    if chunk.get("error"):
        raise Refused(_message(json.dumps(chunk)))
    if usage := chunk.get("usage"):
        answer.prompt_tokens, answer.tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {"content": choice.get("text")}
        if choice.get("token_ids") or any(delta.get(name) for name in SAYS):
            answer.times.append(time.perf_counter())


def _message(text: str) -> str:
    """What an error's body says, as one line."""
    try:
        found = json.loads(text)["error"]
        text = str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, LookupError, TypeError):
        pass
    return " ".join(text.split())[:200]
