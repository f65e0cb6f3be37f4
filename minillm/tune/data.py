"""Lines of JSON, as people have them, as conversations, prompts with completions, preferences or texts.

| format | keys of a line |
|---|---|
| messages | `messages: [{role, content, tool_calls?}]`, `tools?`, `chat_template_kwargs?` |
| ShareGPT | `conversations: [{from: human, gpt, system or tool, value}]`, `system?`, `tools?` |
| Alpaca | `instruction`, `output`, `input?`, `system?`, `history?: [[asked, answered]]` |
| prompt and completion | `prompt`, `completion`, texts or lists of messages |
| preference | `chosen`, `rejected`, texts or lists of messages, `prompt` |
| text | `text` |

The first line decides which it is; all others must be of the same format. Keys without effect are said once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm.guard.files import read_bytes, utf8
from minillm.guard.jsonfile import parsed
from minillm.guard.screen import note, shown

MAX_FILE_BYTES, MAX_LINE_BYTES = 4_000_000_000, 16_000_000
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "user": "user", "assistant": "assistant",
         "system": "system", "tool": "tool"}  # of ShareGPT  # fmt: skip

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Record:
    """One line. `asked` is what stands before, `answered` what is learnt, and `rejected` what an answer should not be;
    each a list of messages or a text. Of a conversation all is `answered`."""

    line: int
    answered: Messages | str
    asked: Messages | str | None = None
    rejected: Messages | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of the chat template: tools, variables


@dataclass(frozen=True)
class Format:
    """The keys that a line must have, those that it may, and what is made of it."""

    name: str
    needed: tuple[str, ...]
    known: tuple[str, ...]
    read: Callable[[int, dict[str, Any]], Record]


def read(path: Path) -> tuple[str, list[Record]]:
    """The name of a file's format, and its lines. Raises ValueError that names the line for what is not as it must
    be."""
    found: list[Record] = []
    format: Format | None = None
    unused: set[str] = set()
    for number, values in _lines(path):
        if format is None:
            format = _format(path, number, values)
        if missing := [key for key in format.needed if values.get(key) is None]:
            raise ValueError(f"{path}, line {number}: no {missing[0]!r}, though line {found[0].line} makes this a file "
                             f"of the format {format.name!r}; give every line the same keys")  # fmt: skip
        unused |= values.keys() - {*format.needed, *format.known}
        try:
            found.append(format.read(number, values))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if format is None:
        raise ValueError(f"{path}: no lines; give one JSON object on each")
    if unused:
        note(f"{path}: keys without effect: {', '.join(sorted(unused))}")
    return format.name, found


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".json":
        raise ValueError(f"{path}: expected lines of JSON (.jsonl), one object on each; write it so")
    for number, line in enumerate(read_bytes(path, MAX_FILE_BYTES, pipe=True).split(b"\n"), start=1):
        source = f"{path}, line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{source}: {len(line):,} bytes, more than the {MAX_LINE_BYTES:,} a line may have")
        if text := utf8(line, source).strip("\ufeff \t\r"):
            values = parsed(text, source)
            if not isinstance(values, dict):
                raise ValueError(f'{source}: a {type(values).__name__}, expected an object such as {{"text": …}}')
            yield number, values


def _format(path: Path, line: int, values: Mapping[str, Any]) -> Format:
    for each in FORMATS:
        if all(key in values for key in each.needed):
            return each
    known = "; ".join(f"{each.name}: {', '.join(each.needed)}" for each in FORMATS)
    raise ValueError(f"{path}, line {line}: the keys {shown(sorted(values))} are of no known format ({known})")


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is {shown(value)}, expected a list of messages")
    for at, each in enumerate(value):
        if not isinstance(each, dict) or not isinstance(each.get("role"), str):
            raise ValueError(f'{name}[{at}] is {shown(each)}, expected a message such as {{"role": "user", …}}')
        if "weight" in each:
            raise ValueError(f"{name}[{at}] has a weight, which is not followed; leave the key, or the message, out")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, expected a text")
    return value


def _either(value: Any, name: str, role: str) -> Messages | str:
    """A text, or messages, of which one alone may stand without a list around it; of `role` where it has none."""
    if isinstance(value, str):
        return value
    return _messages([{"role": role, **value}] if isinstance(value, dict) else value, name)


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    tools, variables = values.get("tools"), values.get("chat_template_kwargs")
    if isinstance(tools, str):  # ShareGPT has them as JSON in a text
        tools = parsed(tools, "tools") if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"tools is {shown(tools)}, expected a list")
    if variables is not None and not isinstance(variables, dict):
        raise ValueError(f"chat_template_kwargs is {shown(variables)}, expected an object")
    return {"tools": tools or None, "variables": variables}


def _conversation(line: int, values: dict[str, Any]) -> Record:
    return _spoken(Record(line, _messages(values["messages"], "messages"), options=_options(values)))


def _spoken(record: Record) -> Record:
    """A record in which an assistant says something."""
    if not any(each["role"] == "assistant" for each in record.answered if isinstance(each, dict)):
        raise ValueError("no message is an assistant's, so there is nothing to learn; leave the line out")
    return record


def _sharegpt(line: int, values: dict[str, Any]) -> Record:
    made: Messages = [{"role": "system", "content": _text(values["system"], "system")}] if values.get("system") else []
    turns = values["conversations"]
    for at, each in enumerate(turns if isinstance(turns, list) else [turns]):
        if not isinstance(each, dict) or each.get("from") not in ROLES:
            raise ValueError(f'conversations[{at}] is {shown(each)}, expected "from" to be one of {", ".join(ROLES)}')
        made.append({"role": ROLES[each["from"]], "content": _text(each.get("value"), f"conversations[{at}].value")})
    return _spoken(Record(line, made, options=_options(values)))


def _alpaca(line: int, values: dict[str, Any]) -> Record:
    made: Messages = [{"role": "system", "content": _text(values["system"], "system")}] if values.get("system") else []
    for at, pair in enumerate(values.get("history") or []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"history[{at}] is {shown(pair)}, expected what was asked and what was answered")
        for role, said in zip(("user", "assistant"), pair, strict=True):
            made.append({"role": role, "content": _text(said, f"history[{at}]")})
    asked = [_text(values["instruction"], "instruction"), _text(values.get("input") or "", "input")]
    made.append({"role": "user", "content": "\n".join(each for each in asked if each)})
    return Record(line, [{"role": "assistant", "content": _text(values["output"], "output")}], made)


def _completion(line: int, values: dict[str, Any]) -> Record:
    asked = _either(values["prompt"], "prompt", "user")
    answered = _either(values["completion"], "completion", "assistant")
    return _of_one_kind(Record(line, answered, asked, options=_options(values)))


def _preference(line: int, values: dict[str, Any]) -> Record:
    chosen, rejected = (_either(values[name], name, "assistant") for name in ("chosen", "rejected"))
    asked = values.get("prompt")
    asked = None if asked is None else _either(asked, "prompt", "user")
    if asked is None:
        if isinstance(chosen, str) or isinstance(rejected, str):
            raise ValueError("no 'prompt', which texts that are chosen and rejected need; give one")
        same = 0
        while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
            same += 1
        asked, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
        if not (asked and chosen and rejected):
            raise ValueError("chosen and rejected must begin alike and end otherwise; give a 'prompt'")
    return _of_one_kind(Record(line, chosen, asked, rejected, _options(values)))


def _of_one_kind(record: Record) -> Record:
    said = [each for each in (record.asked, record.answered, record.rejected) if each is not None]
    if len({isinstance(each, str) for each in said}) > 1:
        raise ValueError("some of it is a text and some a list of messages; give all in one way")
    if isinstance(record.answered, str):
        return record
    for each in said[1:]:
        if not all(message["role"] in ("assistant", "tool") for message in each if isinstance(message, dict)):
            raise ValueError("what is learnt must be an assistant's messages; put others into the prompt")
    return _spoken(record)


def _plain(line: int, values: dict[str, Any]) -> Record:
    if not (text := _text(values["text"], "text")):
        raise ValueError("the text is empty; leave the line out")
    return Record(line, text)


_TEMPLATE = ("tools", "chat_template_kwargs")
FORMATS = (
    Format("messages", ("messages",), _TEMPLATE, _conversation),
    Format("ShareGPT", ("conversations",), ("system", *_TEMPLATE), _sharegpt),
    Format("preference", ("chosen", "rejected"), ("prompt", *_TEMPLATE), _preference),
    Format("Alpaca", ("instruction", "output"), ("input", "system", "history"), _alpaca),
    Format("prompt and completion", ("prompt", "completion"), _TEMPLATE, _completion),
    Format("text", ("text",), (), _plain),
)
