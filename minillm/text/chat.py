"""Chat templates: a list of messages -> the text that the model was trained to continue.

A template comes with the checkpoint and is a program by a stranger: it runs in Jinja's immutable sandbox, which keeps
it from Python, and in a process of its own (`rendering.py`), which has limits of time and memory and knows nothing but
plain copies of the messages.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.guard.child import Child
from minillm.guard.files import is_there, read_text
from minillm.guard.jsonfile import read_json
from minillm.text import messages as forms
from minillm.text.messages import Message as Message

MAX_SOURCE_CHARS = 1_000_000
MAX_OUTPUT_CHARS = 8_000_000
MAX_SECONDS = 10.0  # of a whole `render`, however often the template runs in it

_templates = Child("minillm.text.rendering")


class ChatTemplate:
    """A compiled template with the special tokens of its tokenizer. Raises ValueError when it does not compile."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]):
        if len(source) > MAX_SOURCE_CHARS:
            raise ValueError(f"chat template of {len(source)} characters, more than the {MAX_SOURCE_CHARS} allowed")
        self.special_tokens = special_tokens
        self.asks_for_none = bool(re.search(r"\bis\s+(not\s+)?none\b", source, re.IGNORECASE))
        self.source = source
        try:
            _templates.ask((source, None, 0), MAX_SECONDS)
        except ValueError as error:
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
        kinds = [forms.copied(tool, "tools") for tool in tools or ()]
        if odd := [at for at, kind in enumerate(kinds) if not isinstance(kind, dict)]:
            raise ValueError(f"tools[{odd[0]}] is {str(kinds[odd[0]])[:60]}, expected its JSON schema as a dict")
        cleaned = forms.normalised(given)
        if continue_final_message is None:
            continue_final_message = add_generation_prompt and forms.is_unfinished(cleaned)
        common = {"documents": None, "add_generation_prompt": add_generation_prompt and not continue_final_message}
        names = {**self.special_tokens, **common, **forms.copied(variables or {}, "template variables")}
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
        try:
            if (left := deadline - time.monotonic()) <= 0:
                raise ValueError(f"it took more than {MAX_SECONDS:.0f} seconds")
            return str(_templates.ask((self.source, given, MAX_OUTPUT_CHARS), left))
        except ValueError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from None


def expect() -> None:
    """Let the process for templates begin to start, which takes a tenth of a second, as there will be messages; what
    does not go well shows when it is asked."""
    with contextlib.suppress(OSError, ValueError):
        _templates.start()


def find(folder: Path, tokenizer_config: Mapping[str, Any], tools: bool = False) -> str | None:
    """The source of a folder's template: chat_template.jinja, else chat_template.json, else tokenizer_config.json.

    Where there are several, the one named "tool_use" for conversations with tools, "default" for others.
    """
    if is_there(folder / "chat_template.jinja"):
        return read_text(folder / "chat_template.jinja")
    if is_there(folder / "chat_template.json"):
        source = read_json(folder / "chat_template.json").get("chat_template")
    else:
        source = tokenizer_config.get("chat_template")
    if isinstance(source, list):
        named = {str(each.get("name")): each.get("template") for each in source if isinstance(each, dict)}
        source = named.get("tool_use" if tools and "tool_use" in named else "default")
    if source is not None and not isinstance(source, str):
        raise ValueError(f"{folder}: the chat template is a {type(source).__name__}, expected text")
    return source
