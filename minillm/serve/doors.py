"""What every request passes before any route sees it: who asks, from where, and how much is sent.

Decisions go by `scope["path"]`, which is what the router goes by; a Host header changes nothing of it (CVE-2026-48746).
Each request has one line of JSON in the log, without a word of what was asked or answered.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minillm.guard.screen import steerless
from minillm.serve.errors import Refusal, fault, response
from minillm.serve.service import Gone, Service

OPEN = {"/", "/health"}  # no key is asked for here; the page holds no data
CLOSED_STATUS = 499  # nginx's number for a client that left
LIMITS = ("limit", "remaining", "reset")
EXPOSED = ", ".join(  # to pages of other origins
    ["x-request-id", "retry-after", "x-should-retry"]
    + [f"x-ratelimit-{what}-{of}" for what in LIMITS for of in ("requests", "tokens")]
)
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Doors:
    """An ASGI app around another. `log` takes a line."""

    def __init__(self, app: ASGIApp, service: Service, log: Callable[[bytes], Any], files: Mapping[str, Any]):
        self.app, self.service, self.log = app, service, log
        self.open = {*OPEN, *files}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        name = given if re.fullmatch(r"[\w.-]{1,128}", given, re.ASCII) else secrets.token_hex(8)
        record: dict[str, Any] = {"id": name, "method": scope["method"], "path": scope["path"][:200]}
        scope["state"] = {"record": record, "key": self.service.keys.anybody}
        sent = Sent(send, {**SAFE, "x-request-id": name, **self._origin(headers)}, record)
        try:
            key = self._enter(scope, headers)
            scope["state"]["key"], record["key"] = key, key.name
            sent.limits = key.headers
            if scope["method"] == "OPTIONS" and self._origin(headers):  # a browser asks whether a page may ask
                return await Response(status_code=204)(scope, receive, sent)
            body = await self._body(scope, headers, receive)
            await self.app(scope, replayed(body, receive), sent)
        except Refusal as refusal:
            await sent.refuse(scope, refusal)
        except Gone:
            record["status"] = CLOSED_STATUS
        except Exception as error:
            record["fault"] = _place(error)
            await sent.refuse(scope, fault(name))
        finally:
            record["seconds"] = round(time.monotonic() - began, 4)
            if scope["path"] != "/health":
                self._write({"time": round(time.time(), 3), **record})

    def _enter(self, scope: Scope, headers: Mapping[str, str]) -> Any:
        """The key of who asks. Raises Refusal."""
        if "transfer-encoding" in headers and "content-length" in headers:
            raise Refusal(400, "content-length and transfer-encoding at once; send one of them", headers=CLOSE)
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "content-encoding is not supported; send plain JSON", "unsupported_encoding")
        self._from_where(headers)
        if scope["path"] in self.open or (scope["method"] == "OPTIONS" and self._origin(headers)):
            return self.service.keys.anybody
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            secret = headers.get("x-api-key", "")
        return self.service.keys.holder(secret.strip())

    def _from_where(self, headers: Mapping[str, str]) -> None:
        """Pages of other sites may not ask, whether by a name of their own for this machine or by a plain form."""
        hosts = self.service.settings.hosts
        if hosts and _hostname(headers.get("host", "")) not in hosts:
            said = f"this server answers to {', '.join(hosts)}; keys (--api-keys) open it to other names"
            raise Refusal(403, said, "wrong_host")
        origin = headers.get("origin")
        if origin and origin.partition("://")[2] != headers.get("host") and not self._origin(headers):
            raise Refusal(403, "pages of this origin may not ask; see --allow-origin", "wrong_origin")

    def _origin(self, headers: Mapping[str, str]) -> dict[str, str]:
        """What a browser is told where the page of another origin may ask."""
        if (origin := headers.get("origin", "")) not in self.service.settings.origins:
            return {}
        wanted = headers.get("access-control-request-headers", "")  # clients have many of their own
        known = wanted if re.fullmatch(r"[\w\-, ]{1,4000}", wanted, re.ASCII) else ""
        allowed = {"origin": origin, "methods": "GET, POST", "headers": known}
        found = {f"access-control-allow-{what}": value for what, value in allowed.items() if value}
        return {**found, "access-control-expose-headers": EXPOSED, "vary": "origin"}

    async def _body(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> bytes:
        """All of a body. Raises Refusal where it is too large, said or sent, or takes too long; Gone."""
        most = 0 if scope["path"] in self.open else self.service.settings.max_body
        said = headers.get("content-length", "0")
        large = Refusal(413, f"the body has more than {most:,} bytes; send less", "body_too_large", headers=CLOSE)
        if not said.isdigit() or int(said[:20]) > most:
            raise large
        parts, size = [], 0
        with anyio.move_on_after(self.service.settings.body_timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                parts.append(message.get("body", b""))
                if (size := size + len(parts[-1])) > most:
                    raise large
                if not message.get("more_body"):
                    return b"".join(parts)
        seconds = self.service.settings.body_timeout
        raise Refusal(408, f"the body did not come within {seconds:.0f} seconds", "body_timeout", headers=CLOSE)

    def _write(self, record: dict[str, Any]) -> None:
        self.log(steerless(msgspec.json.encode(record).decode()).encode() + b"\n")


CLOSE = {"connection": "close"}


class Sent:
    """The way back to a client: adds headers, and knows whether an answer has begun."""

    def __init__(self, send: Send, headers: dict[str, str], record: dict[str, Any]):
        self.send, self.headers, self.record, self.begun = send, headers, record, False
        self.limits: Callable[[], dict[str, str]] = dict  # what is left of them when the answer begins

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.record["status"] = message["status"]
            own, headers = {name for name, _ in message["headers"]}, self.headers | self.limits()
            more = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
            message = {**message, "headers": [*message["headers"], *(pair for pair in more if pair[0] not in own)]}
        await self.send(message)

    async def refuse(self, scope: Scope, refusal: Refusal) -> None:
        """Say why there is no answer; nothing where one has begun."""
        self.record["refused"] = refusal.code or refusal.status
        if not self.begun:
            with contextlib.suppress(OSError):
                await response(refusal, scope["path"])(scope, _nothing, self)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, and then what else comes."""
    waiting = [body]

    async def again() -> Message:
        return {"type": "http.request", "body": waiting.pop(), "more_body": False} if waiting else await receive()

    return again


def _hostname(host: str) -> str:
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def is_local(host: str) -> bool:
    """Whether a host to listen at is this machine only."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _place(error: Exception) -> str:
    """Which fault it was and where, for the log."""
    frames = traceback.extract_tb(error.__traceback__)
    at = frames[-1]
    return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {error}"[:500]


def to_stderr(line: bytes) -> None:
    print(line.decode("utf-8", "replace"), end="", file=sys.stderr, flush=True)
