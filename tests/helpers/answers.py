"""Answers in every format of calls, written from the formats' descriptions and not from the table that is tested, and
what a reader makes of a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minillm.serve.answers import Piece, Reader, styles
from minillm.serve.answers.pieces import merged

Call = tuple[str, Mapping[str, Any]]
KINDS = {
    "text": "string", "count": "integer", "size": "number", "flag": "boolean", "nothing": "null", "list": "array",
    "thing": "object",
}  # fmt: skip
TOOLS: dict[str, dict[str, Any]] = {
    "weather": {"type": "object", "properties": {key: {"type": kind} for key, kind in KINDS.items()}},
    "now": {"type": "object", "properties": {}},
}


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _named(calls: Sequence[Call], key: str = "arguments") -> list[str]:
    return [dumped({"name": name, key: arguments}) for name, arguments in calls]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dumped(value)


def _functions(tag: str, line: str) -> Callable[[Sequence[Call]], str]:
    def write(calls: Sequence[Call]) -> str:
        items = {
            name: "".join(f"<parameter={key}>{line}{_text(each)}{line}</parameter>\n" for key, each in given.items())
            for name, given in calls
        }
        return "\n".join(f"<{tag}>\n<function={name}>\n{items[name]}</function>\n</{tag}>" for name in items)

    return write


def _pairs(newline: str) -> Callable[[Sequence[Call]], str]:
    def write(calls: Sequence[Call]) -> str:
        made = []
        for name, given in calls:
            items = "".join(
                f"<arg_key>{key}</arg_key>{newline}<arg_value>{_text(value)}</arg_value>{newline}"
                for key, value in given.items()
            )
            made.append(f"<tool_call>{name}{newline}{items}</tool_call>")
        return newline.join(made)

    return write


def _dsml(calls: Sequence[Call]) -> str:
    mark = "｜DSML｜"
    made = []
    for name, given in calls:
        items = "".join(
            f'<{mark}parameter name="{key}" string="{"true" if isinstance(value, str) else "false"}">'
            f"{_text(value)}</{mark}parameter>\n"
            for key, value in given.items()
        )
        made.append(f'<{mark}invoke name="{name}">\n{items}</{mark}invoke>\n')
    return f"<{mark}function_calls>\n{''.join(made)}</{mark}function_calls>"


def _python(name: str, given: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def _unquoted(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_unquoted(each, quote)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_unquoted(each, quote) for each in value) + "]"
    return dumped(value)


def _brand(name: str) -> str:
    return f"<|plamo:{name}:plamo|>"


def _requests(calls: Sequence[Call]) -> str:
    made = "".join(
        f"{_brand('begin_tool_request')}{_brand('begin_tool_name')}{name}{_brand('end_tool_name')}"
        f"{_brand('begin_tool_arguments')}<|plamo:constrain|>json<|plamo:msg|>{dumped(given)}"
        f"{_brand('end_tool_arguments')}{_brand('end_tool_request')}"
        for name, given in calls
    )
    return f"{_brand('begin_tool_requests')}{made}{_brand('end_tool_requests')}"


def _section(begin: str, end: str, each: Callable[[int, str, str], str], joint: str = "") -> Callable[..., str]:
    return lambda calls: (
        begin + joint.join(each(at, name, dumped(given)) for at, (name, given) in enumerate(calls)) + end
    )


QUOTE = '<|"|>'
_DEEP = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_FENCED = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
_COUNTED = "<|tool_call_begin|>functions.{}:{}<|tool_call_argument_begin|>{}<|tool_call_end|>"
_FIRST = "<|start|>assistant to=functions.{}<|channel|>commentary json<|message|>{}<|call|>"
_CHANNEL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"
# By style and a word: several ways to write one style.
WRITERS: dict[str, Callable[[Sequence[Call]], str]] = {
    "tagged": lambda calls: "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in _named(calls)),
    "functions": _functions("tool_call", "\n"),
    "prefixed": _functions("seed:tool_call", ""),
    "parted": _section(
        "<|tool_calls|>", "<|calls|>",
        lambda at, name, given: (
            f"<|tool_call:begin|>{at}<|tool_call:name|>{name}<|tool_call:args|>{given}<|tool_call:end|>"
        ),
    ),
    "pairs": _pairs("\n"),
    "pairs dense": _pairs(""),
    "bare": lambda calls: "; ".join(_named(calls, "parameters")),
    "bare tag": lambda calls: "<|python_tag|>" + ";".join(_named(calls, "parameters")),
    "python": lambda calls: f"[{', '.join(_python(*each) for each in calls)}]",
    "listed": lambda calls: "<function_calls>" + "\n".join(_python(*each) for each in calls) + "</function_calls>",
    "array": lambda calls: f"[TOOL_CALLS] [{', '.join(_named(calls))}]",
    "marked-array": lambda calls: f"<|tool_call|>[{', '.join(_named(calls))}]",
    "called-array": lambda calls: f"functools[{', '.join(_named(calls))}]",
    "named": lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{dumped(given)}" for name, given in calls),
    "named id": lambda calls: "".join(
        f"[TOOL_CALLS]{name}[CALL_ID]abcdefghi[ARGS]{dumped(given)}" for name, given in calls
    ),
    "fenced": _section(*_DEEP, lambda _, name, given: _FENCED.format(name, given), "\n"),
    "separated": _section(
        *_DEEP, lambda _, name, given: f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{given}<｜tool▁call▁end｜>"
    ),
    "dsml": _dsml,
    "channels": _section("", "", lambda _, name, given: _CHANNEL.format(name, given), "<|start|>assistant"),
    "channels first": _section("", "", lambda _, name, given: _FIRST.format(name, given)),
    "escaped": lambda calls: "".join(
        f"<start_function_call>call:{name}{_unquoted(given, '<escape>')}<end_function_call>" for name, given in calls
    ),
    "quoted": lambda calls: "".join(
        f"<|tool_call>call:{name}{_unquoted(given, QUOTE)}<tool_call|>" for name, given in calls
    ),
    "counted": _section(
        "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
        lambda at, name, given: _COUNTED.format(name, at, given),
    ),
    "requests": _requests,
}  # fmt: skip
TAILS = {"channels": "<|start|>assistant", "channels first": "<|start|>user<|message|>Hi<|end|>"}


def reader(style: str, tail: str = "", tools: Mapping[str, Any] | None = None, **how: Any) -> Reader:
    return Reader(styles[style.split()[0]], tail or TAILS.get(style, ""), TOOLS if tools is None else tools, **how)


def read(made: Reader, parts: Iterable[str], reason: str = "stop") -> list[Piece]:
    """What a reader makes of a text in parts, with ids left out, which are random."""
    pieces = [piece for part in parts for piece in made.push(part)]
    return [replace(piece, id="") for piece in merged([*pieces, *made.finish(reason)])]


def calls_of(pieces: Sequence[Piece]) -> list[Call]:
    """The calls, arguments decoded."""
    texts = {piece.index: piece.text for piece in pieces if piece.kind == "arguments"}
    return [(piece.text, json.loads(texts[piece.index])) for piece in pieces if piece.kind == "call"]


def shown(pieces: Sequence[Piece], kind: str) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == kind)
