"""What chat templates do, in the process that they run in (`guard/child.py`): compiled and rendered by Jinja, set up as
transformers does it, in the immutable sandbox."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

KEPT_TEMPLATES = 8
GENERATION = ("generation_begins", "generation_ends")


def prepare(_: None) -> None:
    """Nothing: each request brings its template."""


def answer(source: str, given: Mapping[str, Any] | None, most: int) -> str:
    """A template rendered with the names that are given; compiled only, where none are."""
    made = compiled(source)
    if given is None:
        return ""
    pieces: list[str] = []
    size = 0
    for piece in made.generate(given):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise ValueError(f"more than {most} characters")
    return "".join(pieces)


@functools.lru_cache(KEPT_TEMPLATES)
def compiled(source: str) -> Any:
    return environment().from_string(source)


class Generation(Extension):
    """{% generation %} … {% endgeneration %}, around what an assistant said, for training: what is inside, between two
    names that are nothing to who does not give them."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Any) -> list[Any]:
        line = next(parser.stream).lineno
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begins, ends = (nodes.Output([nodes.Name(name, "load")], lineno=line) for name in GENERATION)
        return [begins, *inside, ends]


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
    return made
