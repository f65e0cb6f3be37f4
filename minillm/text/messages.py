"""What is done to messages before a chat template sees them, as transformers does it, and content that comes in parts.

Clients hand back what an API gave them: objects instead of dicts, keys whose value is null, reasoning under one of
three names, content as a list of parts. A template knows one of these forms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Messages = list[dict[str, Any]]

REASONING = ("reasoning_content", "thinking", "reasoning")  # what templates and clients call it; the first is usual


def plain(value: Any) -> Any:
    """A value in the types of JSON, copied: dataclasses and pydantic models as dicts, and of what is neither only the
    name of its type, `<ndarray>`. A template, which is a stranger's program, gets no other objects into its hands."""
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else list(map(plain, value))
    if isinstance(value, str):
        return str.__str__(value)  # not what a subclass makes of itself
    if isinstance(value, (bool, int, float)):
        return value if isinstance(value, bool) else int(value) if isinstance(value, int) else float(value)
    if value is None:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return plain(dump())
    if callable(item := getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        return plain(item())  # a number of numpy or PyTorch
    return f"<{type(value).__name__}>"


def copied(value: Any, what: str) -> Any:
    """A plain value. Raises ValueError for one that does not end."""
    try:
        return plain(value)
    except RecursionError:
        raise ValueError(f"{what} are nested too deeply, or hold themselves") from None


def read(messages: Sequence[Any]) -> Messages:
    """Messages as dicts of plain values. Raises ValueError for what is none."""
    made = [copied(message, "messages") for message in messages]
    for at, message in enumerate(made):
        if not isinstance(message, dict):
            raise ValueError(f'messages[{at}] is {str(message)[:60]!r}, expected a dict such as {{"role": "user", …}}')
    return made


def normalised(messages: Messages) -> Messages:
    """Without keys whose value is None, which templates take for a text or a list, and with reasoning under each name
    that a template may read it by."""
    made = []
    for message in messages:
        message = {key: value for key, value in message.items() if value is not None}
        if (found := next((message[name] for name in REASONING if name in message), None)) is not None:
            message = {"thinking": found, **message, "reasoning_content": found}
        made.append(message)
    return made


def joined(messages: Messages, render: Callable[[Messages], str]) -> Messages:
    """Messages with the parts of their content made one text, a line each, where the template does not read lists.

    Whether it does is seen by what it makes of a probe, for all roles together and else role by role: one part of text
    has to come out as the text by itself does, but for white space, or come out where the text by itself is lost.
    Raises ValueError for parts that are no text in the messages of a role whose content the template reads as a text.
    """
    listed = {at: str(message.get("role")) for at, message in enumerate(messages) if _has_parts(message)}
    if not listed:
        return messages
    probes = {at: f"TEXT_OF_MESSAGE_{at}_" for at in listed}

    def probed(roles: set[str]) -> str | None:
        made = [*messages]
        for at, text in probes.items():
            part = [{"type": "text", "text": text}]
            made[at] = {**messages[at], "content": part if listed[at] in roles else text}
        try:
            return "".join(render(made).split())
        except ValueError:
            return None

    def reads_lists(roles: set[str]) -> bool:
        if (found := probed(roles)) is None or found == as_texts:
            return found is not None
        own = [text for at, text in probes.items() if listed[at] in roles]
        return all(text in found and text not in (as_texts or "") for text in own)

    as_texts, roles = probed(set()), {*listed.values()}
    reading = roles if reads_lists(roles) else {role for role in roles if len(roles) > 1 and reads_lists({role})}
    texts = {at: _one_text(at, messages[at]["content"]) for at, role in listed.items() if role not in reading}
    return [{**each, "content": texts[at]} if at in texts else each for at, each in enumerate(messages)]


def _has_parts(message: Message) -> bool:
    return isinstance(message.get("content"), list)


def _one_text(at: int, parts: list[Any]) -> str:
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise ValueError(
                f"messages[{at}] has content of type {kind!r}; the chat template of this checkpoint takes text only"
            )
        texts.append(text)
    return "\n".join(texts)


class Unfinished:
    """A last message that is to be gone on with: `marked` are the messages with a mark at the end of its text, and
    `cut` takes a rendered conversation off where the mark stands.

    Raises ValueError where there is no text to go on with, and where the template changed it or left it out.
    """

    MARK = "END_OF_THE_LAST_MESSAGE"

    def __init__(self, messages: Messages):
        if not messages:
            raise ValueError("the conversation is empty: there is no last message to go on with; give one at least")
        self.marked = [*messages[:-1], dict(messages[-1])]
        content = messages[-1].get("content")
        if isinstance(content, list):
            texts = [
                i for i, part in enumerate(content) if isinstance(part, dict) and isinstance(part.get("text"), str)
            ]
            if texts:
                self.text = content[texts[-1]]["text"]
                self.marked[-1]["content"] = [*content]
                self.marked[-1]["content"][texts[-1]] = {**content[texts[-1]], "text": f"{self.text}{self.MARK} "}
                return
        if not isinstance(content, str):
            raise ValueError("the last message has no text to go on with; give its content, or leave it out")
        self.text = content
        self.marked[-1]["content"] = f"{content}{self.MARK} "

    def cut(self, rendered: str) -> str:
        before, found, behind = rendered.rpartition(self.MARK)
        if not found or self.text.strip() not in rendered:
            raise ValueError(
                "the chat template leaves the last message out or changes it, so it cannot be gone on with"
            )
        return before if behind.startswith(" ") else before.rstrip()  # a template that strips messages strips this one


def is_unfinished(messages: Messages) -> bool:
    """Whether a conversation ends with something that its assistant has begun to say."""
    last = messages[-1] if messages else {}
    return (
        last.get("role") == "assistant" and not last.get("tool_calls") and isinstance(last.get("content"), (str, list))
    )
