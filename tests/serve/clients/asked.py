"""What each client is to do, and what the answers must be. It needs nothing of the project, nor of most clients."""

from __future__ import annotations

import functools
import json
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal

import pydantic

MODEL, KEY, NEW = "demo", "none", 400  # tokens, fewer than which a story has
MANY = 300  # that a call may have
STORY = "Tell me a story about a cat"
LONG = "word " * 5000
QUESTION = "How is the weather?"


class Cat(pydantic.BaseModel, extra="forbid"):
    """A cat. Bounded, as a small model does not know where to stop."""

    colour: Literal["black", "white", "red"]
    lives: int = pydantic.Field(ge=1, le=9)


class Weather(pydantic.BaseModel, extra="forbid"):
    """The arguments of `weather`."""

    city: Literal["Paris", "Tokyo"]
    days: Literal[1, 2]


def weather(city: Literal["Paris", "Tokyo"], days: Literal[1, 2]) -> str:
    """The weather of a city."""
    return f"{city} will have rain for {days} days"


def is_weather(given: dict[str, Any]) -> None:
    assert set(given) == {"city", "days"}, given
    assert weather(**given).startswith(("Paris", "Tokyo"))


@dataclass(frozen=True)
class Server:
    """The one under test."""

    url: str

    @property
    def base(self) -> str:
        return f"{self.url}/v1"

    @functools.cached_property
    def story(self) -> str:
        """The answer to `STORY`, asked for without any client."""
        body = {"messages": [{"role": "user", "content": STORY}], "max_tokens": NEW}
        asked = urllib.request.Request(f"{self.base}/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])


def raised(kind: type[BaseException], work: Any, status: int) -> None:
    """`work` must fail so, with this status of HTTP."""
    found: BaseException | None = None
    try:
        work()
    except kind as error:
        found = error
    assert getattr(found, "status_code", None) == status, f"{found!r}, expected {kind.__name__} with {status}"
