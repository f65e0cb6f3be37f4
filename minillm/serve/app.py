"""The app: which path is whose."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from minillm.serve import errors, openapi
from minillm.serve.apis import anthropic, embeddings, ollama, openai_chat, openai_completions, plain, responses
from minillm.serve.apis.openai import json
from minillm.serve.doors import Doors, to_stderr
from minillm.serve.errors import Refusal
from minillm.serve.fields import Body
from minillm.serve.service import Service

APIS = (openai_chat, openai_completions, responses, anthropic, embeddings, ollama, plain)
BODIES: dict[str, type[Body]] = {
    "/v1/chat/completions": openai_chat.ChatBody,
    "/v1/completions": openai_completions.CompletionBody,
    "/v1/responses": responses.ResponsesBody,
    "/v1/messages": anthropic.MessagesBody,
    "/v1/messages/count_tokens": anthropic.CountBody,
    "/api/chat": ollama.ChatBody,
    "/api/generate": ollama.GenerateBody,
    "/api/show": ollama.NameBody,
    "/v1/embeddings": embeddings.EmbeddingsBody,
    "/tokenize": plain.TokenizeBody,
    "/detokenize": plain.DetokenizeBody,
}


async def described(service: Service, request: Request) -> Response:
    return json(_document())


@functools.cache
def _document() -> dict[str, Any]:
    return openapi.document(ROUTES, BODIES)


ROUTES = [*(route for api in APIS for route in api.ROUTES), ("GET", "/openapi.json", described)]
PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


def build(service: Service, log: Callable[[bytes], Any] = to_stderr) -> Doors:
    """The ASGI app of a service."""
    files = page_files(PAGE)
    routes = [Route(path, _bound(handler, service), methods=[method]) for method, path, handler in ROUTES]
    routes += [Route(path, _file(*each), methods=["GET"]) for path, each in files.items()]
    handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _missing, Exception: _fault}
    return Doors(Starlette(routes=routes, exception_handlers=handlers), service, log, files)


def page_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """The files of the page by their paths, read once: nothing else can be asked for. `/` is its index.html."""
    found = {
        f"/page/{path.name}": (path.read_bytes(), TYPES[path.suffix])
        for path in sorted(folder.glob("*"))
        if path.suffix in TYPES
    }
    index = found.get("/page/index.html", (b"minillm is running; its API is at /v1\n", "text/plain"))
    return {**found, "/": index}


def _bound(handler: Callable[[Service, Request], Awaitable[Response]], service: Service) -> Any:
    async def endpoint(request: Request) -> Response:
        return await handler(service, request)

    return endpoint


def _file(content: bytes, kind: str) -> Any:
    async def endpoint(request: Request) -> Response:
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return Response(content, media_type=kind, headers=headers)

    return endpoint


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    request.scope["state"]["record"]["refused"] = refusal.code or refusal.status
    return errors.response(refusal, request.scope["path"])


async def _fault(request: Request, error: Exception) -> Response:
    """For what nobody foresaw, which goes on to the log (`doors.py`)."""
    return errors.response(errors.fault(request.scope["state"]["record"]["id"]), request.scope["path"])


async def _missing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.scope["path"], request.method
    said = f"no route {path[:100]}" if error.status_code == 404 else f"{method} is not allowed for {path[:100]}"
    return errors.response(Refusal(error.status_code, said, headers=error.headers), path)
