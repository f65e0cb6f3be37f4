"""Chat templates: a list of messages -> the text that the model was trained to continue.

A template comes with the checkpoint and is a program by a stranger: it runs in Jinja's immutable sandbox, with the
products that could fill the memory refused, and its output bounded in size and time.
"""

from __future__ import annotations

import datetime
import json
import operator
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.config import read_json

Message = Mapping[str, Any]

MAX_SOURCE_CHARS = 1_000_000
MAX_OUTPUT_CHARS = 16_000_000
MAX_SECONDS = 10.0
MAX_REPEAT = 1_000_000


class ChatTemplate:
    """A compiled template with the special tokens of its tokenizer. Raises ValueError when it does not compile."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]):
        from jinja2 import TemplateError

        if len(source) > MAX_SOURCE_CHARS:
            raise ValueError(f"chat template of {len(source)} characters, more than the {MAX_SOURCE_CHARS} allowed")
        self.special_tokens = special_tokens
        # {% generation %} marks what an assistant said, for training; to a reader it is nothing.
        source = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", source)
        source = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", source)
        try:
            self.template = _environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ValueError(f"chat template does not compile: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text, special tokens included, ready for the assistant's turn.

        Raises ValueError with the template's own words when it refuses the messages, and for what it does wrong.
        """
        given = {
            **self.special_tokens,
            **variables,
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        deadline = time.monotonic() + MAX_SECONDS
        pieces: list[str] = []
        size = 0
        try:
            for piece in self.template.generate(given):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT_CHARS or time.monotonic() > deadline:
                    raise ValueError(f"more than {MAX_OUTPUT_CHARS} characters or {MAX_SECONDS:.0f} seconds")
        except Exception as error:  # a template can raise anything that Python can
            raise ValueError(f"the chat template refuses these messages: {error}") from None
        return "".join(pieces)


def find(folder: Path, tokenizer_config: Mapping[str, Any], tools: bool = False) -> str | None:
    """The source of a folder's template: chat_template.jinja, else chat_template.json, else tokenizer_config.json.

    Where there are several, the one named "tool_use" for conversations with tools, "default" for others.
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        source = read_json(folder / "chat_template.json").get("chat_template")
    else:
        source = tokenizer_config.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source if {"name", "template"} <= set(entry)}
        source = named.get("tool_use" if tools and "tool_use" in named else "default")
    return source if isinstance(source, str) else None


def _environment() -> Any:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
    environment.intercepted_binops = frozenset(("*", "**"))
    environment.binop_table.update({"*": _bounded(operator.mul), "**": _bounded(operator.pow)})
    return environment


def _bounded(operation: Any) -> Any:
    def apply(left: Any, right: Any) -> Any:
        numbers = [value for value in (left, right) if isinstance(value, (int, float))]
        limit = 1_000 if operation is operator.pow or len(numbers) < 2 else MAX_REPEAT
        if any(abs(value) > limit for value in numbers):
            raise ValueError(f"{operation.__name__} with a number beyond {limit}")
        return operation(left, right)

    return apply
