"""Chat templates: a list of messages -> the text that the model was trained to continue.

A template comes with the checkpoint and is a program by a stranger: it runs in Jinja's immutable sandbox, which keeps
it from Python and from the caller's objects. Its output is bounded in size, and in time whenever it writes; sums,
products and formatted strings are refused beyond a size. That stops accidents; a template written to waste memory or
time inside one expression still can, as it can in transformers.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.guard.files import read_text
from minillm.guard.jsonfile import read_json
from minillm.text import messages as forms
from minillm.text.messages import Message as Message

MAX_SOURCE_CHARS = 1_000_000
MAX_OUTPUT_CHARS = 16_000_000
MAX_SECONDS = 10.0


class ChatTemplate:
    """A compiled template with the special tokens of its tokenizer. Raises ValueError when it does not compile."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]):
        if len(source) > MAX_SOURCE_CHARS:
            raise ValueError(f"chat template of {len(source)} characters, more than the {MAX_SOURCE_CHARS} allowed")
        self.special_tokens = special_tokens
        self.asks_for_none = bool(re.search(r"\bis\s+(not\s+)?none\b", source, re.IGNORECASE))
        # {% generation %} marks what an assistant said, for training; to a reader it is nothing.
        source = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", source)
        source = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", source)
        try:
            self.template = _environment().from_string(source)
        except Exception as error:  # Jinja's own errors, and Python's for what it generates from deep nesting
            raise ValueError(f"chat template does not compile: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        continue_final_message: bool | None = None,
    ) -> str:
        """The conversation as text, special tokens included, ready for the assistant's turn.

        `variables` are what else the template knows, such as {"enable_thinking": False}. With `continue_final_message`
        the last message is left open, to be gone on with; None: where it is the assistant's and has a text, unless no
        `add_generation_prompt` is asked for.

        The template sees messages as in transformers, without keys whose value is None. One that refuses them so, and
        asks whether something `is none`, gets them as they are. Parts of text are joined for a template that does not
        read lists (`messages.joined`).

        Raises ValueError with the template's own words when it refuses the messages, and for what it does wrong.
        """
        if taken := sorted({"messages", "tools", "self"} & set(variables or ())):
            raise ValueError(f"template variables may not be named {', '.join(taken)}")
        given = forms.read(messages)
        kinds = [forms.plain(tool) for tool in tools or ()]
        if odd := [at for at, kind in enumerate(kinds) if not isinstance(kind, dict)]:
            raise ValueError(f"tools[{odd[0]}] is {str(kinds[odd[0]])[:60]}, expected its JSON schema as a dict")
        cleaned = forms.normalised(given)
        if continue_final_message is None:
            continue_final_message = add_generation_prompt and forms.is_unfinished(cleaned)
        common = {"documents": None, "add_generation_prompt": add_generation_prompt and not continue_final_message}
        names = {**self.special_tokens, **common, **forms.plain(variables or {})}
        names["tools"] = kinds if tools is not None else None
        deadline = time.monotonic() + MAX_SECONDS

        def finished(seen: forms.Messages) -> str:
            seen = forms.joined(seen, lambda probe: self._run({**names, "messages": probe}, deadline))
            if not continue_final_message:
                return self._run({**names, "messages": seen}, deadline)
            last = forms.Unfinished(seen)
            return last.cut(self._run({**names, "messages": last.marked}, deadline))

        try:
            return finished(cleaned)
        except ValueError:
            if cleaned == given or not self.asks_for_none:
                raise
            with contextlib.suppress(ValueError):
                return finished(given)
            raise

    def _run(self, given: Mapping[str, Any], deadline: float) -> str:
        pieces: list[str] = []
        size = 0
        try:
            for piece in self.template.generate(given):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT_CHARS or time.monotonic() > deadline:
                    raise ValueError(f"more than {MAX_OUTPUT_CHARS} characters or {MAX_SECONDS:.0f} seconds")
        except Exception as error:  # a template can raise anything that Python can
            raise ValueError(
                f"the chat template refuses these messages: {str(error) or type(error).__name__}"
            ) from None
        return "".join(pieces)


def find(folder: Path, tokenizer_config: Mapping[str, Any], tools: bool = False) -> str | None:
    """The source of a folder's template: chat_template.jinja, else chat_template.json, else tokenizer_config.json.

    Where there are several, the one named "tool_use" for conversations with tools, "default" for others.
    """
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    if (folder / "chat_template.json").is_file():
        source = read_json(folder / "chat_template.json").get("chat_template")
    else:
        source = tokenizer_config.get("chat_template")
    if isinstance(source, list):
        named = {str(each.get("name")): each.get("template") for each in source if isinstance(each, dict)}
        source = named.get("tool_use" if tools and "tool_use" in named else "default")
    if source is not None and not isinstance(source, str):
        raise ValueError(f"{folder}: the chat template is a {type(source).__name__}, expected text")
    return source


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
    environment.intercepted_binops = frozenset(_SIZES)
    environment.binop_table.update({sign: _bounded(sign, environment.binop_table[sign]) for sign in _SIZES})
    return environment


def _length(value: Any) -> float:
    """Characters or entries of a value; a number has none, but for one that no template has a use for."""
    if isinstance(value, (int, float)):
        return 0 if abs(value) < 1e18 else math.inf
    return len(value) if hasattr(value, "__len__") else 1


def _repeated(left: Any, right: Any) -> float:
    """The size of left * right: a text or a list as many times as the number says, or just a number."""
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return max(_length(left), _length(right))
    text, count = (right, left) if isinstance(left, int) else (left, right)
    return _length(text) * count


# How large a result may become, by the operator; what "%" formats is known only afterwards.
_SIZES: dict[str, Callable[[Any, Any], float]] = {
    "+": lambda left, right: _length(left) + _length(right),
    "*": _repeated,
    "**": lambda left, right: _length(left) if abs(right) <= 64 else math.inf,
    "%": lambda left, right: 0,
}


def _bounded(sign: str, operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Any:
        result = operation(left, right) if _SIZES[sign](left, right) <= MAX_OUTPUT_CHARS else None
        if result is None or (isinstance(result, str) and len(result) > MAX_OUTPUT_CHARS):
            raise ValueError(f"{sign} makes a value beyond {MAX_OUTPUT_CHARS} characters, or a number beyond 1e18")
        return result

    return apply
