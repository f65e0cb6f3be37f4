"""What a client is told when a request is refused, in the form that its API has for it.

OpenAI    {"error": {"message", "type", "param", "code"}}           all four keys, always
Anthropic {"type": "error", "error": {"type", "message"}}
Ollama    {"error": "message"}

No body has a path, an address or a traceback: messages are those written here and the ValueErrors of checks, one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from minillm.guard.screen import one_line

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
MAX_RETRY = 120  # seconds: clients that are told more do not try again


class Refusal(Exception):
    """A request that is not done, and why. `code` is a name that programs know it by, `param` the field to blame, and
    `more` goes into the body beside them."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.more = status, code, param, more
        self.message = one_line(message)
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        return KINDS.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")


def retry(status: int, message: str, seconds: float, code: str | None = None, **headers: str) -> Refusal:
    """A refusal that will not hold for long: the client's library waits and asks again."""
    wait = str(max(1, min(MAX_RETRY, math.ceil(seconds))))
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Refusal(status, message, code, headers={"retry-after": wait, "x-should-retry": "true", **named})


def too_long(prompt: int, new: int, context: int) -> Refusal:
    """A prompt that does not fit. Clients look for the code, agents for the phrase, and some read the numbers."""
    asked = f"{prompt + new:,} tokens: {prompt:,} in the prompt and {new:,} to be written"
    message = f"This model's maximum context length is {context} tokens, and you asked for {asked}; send fewer"
    return Refusal(400, message, "context_length_exceeded", "messages", None, n_prompt_tokens=prompt, n_ctx=context)


def fault(request_id: str) -> Refusal:
    """A fault of ours."""
    return Refusal(500, f"a fault of the server itself; its log has more under request {request_id}", "internal_error")


def openai(refusal: Refusal) -> dict[str, Any]:
    found = {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": refusal.code}
    return {"error": {**found, **refusal.more}}


def anthropic(refusal: Refusal) -> dict[str, Any]:
    return {"type": "error", "error": {"type": refusal.kind, "message": refusal.message, **refusal.more}}


def ollama(refusal: Refusal) -> dict[str, Any]:
    return {"error": refusal.message}


def body(refusal: Refusal, path: str) -> dict[str, Any]:
    """In the form of the API that a path belongs to."""
    form = anthropic if path.startswith("/v1/messages") else ollama if path.startswith("/api/") else openai
    return form(refusal)


def response(refusal: Refusal, path: str) -> Response:
    content = msgspec.json.encode(body(refusal, path))
    return Response(content, refusal.status, refusal.headers, media_type="application/json")
