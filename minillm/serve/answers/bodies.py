"""Bodies of calls that are read whole: what lies between the marks as a list of calls, or ValueError.

    functions  <function=NAME> <parameter=KEY> VALUE </parameter> … </function>
    pairs      NAME <arg_key>KEY</arg_key> <arg_value>VALUE</arg_value> …
    dsml       <invoke name="NAME"> <parameter name="KEY" string="true|false">VALUE</parameter> … </invoke> …
    python     [NAME(KEY=VALUE, …), …]
    lines      NAME(KEY=VALUE, …) newline …
    unquoted   call:NAME{KEY:VALUE,…} with strings in <|"|>
    escaped    the same with strings in <escape>

Values that are text are cast by the schemas of the tools.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm.serve.answers.scanning import Scanner
from minillm.serve.answers.values import Literals, cast, dumps, loads

Call = tuple[str, str]  # name, arguments as JSON
Tools = Mapping[str, Mapping[str, Any]]


def functions(text: str, tools: Tools) -> list[Call]:
    match = re.fullmatch(r"\s*<function=([^>\n]+)>(.*)</function>\s*", text, re.DOTALL)
    if not match:
        raise ValueError("no <function=…>")
    # A value ends where another parameter or nothing follows, so that it may hold the mark that ends one.
    pattern = r"\s*<parameter=([^>\n]+)>(.*?)</parameter>(?=\s*(?:<parameter=|\Z))"
    found = _arguments(match[2], pattern, lambda item: (item[1], one_line_less(item[2]), None))
    return [_made(match[1].strip(), found, tools)]


def pairs(text: str, tools: Tools) -> list[Call]:
    name, mark, rest = text.partition("<arg_key>")
    pattern = r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>(?=\s*(?:<arg_key>|\Z))"
    found = _arguments(mark + rest, pattern, lambda item: (item[1].strip(), item[2], None))
    return [_made(name.strip(), found, tools)]


def dsml(text: str, tools: Tools) -> list[Call]:
    mark = "｜DSML｜"
    calls = []
    at, pattern = 0, re.compile(rf'\s*<{mark}invoke name="([^"]+)">(.*?)</{mark}invoke>', re.DOTALL)
    while match := pattern.match(text, at):
        at = match.end()
        if match[2].strip().startswith("{"):
            calls.append((match[1], match[2].strip()))
            loads(match[2])
            continue
        item = rf'\s*<{mark}parameter name="([^"]+)"(?: string="(true|false)")?>(.*?)</{mark}parameter>'
        found = _arguments(match[2], item, lambda item: (item[1], item[3], item[2]))
        calls.append(_made(match[1], found, tools))
    if text[at:].strip():
        raise ValueError("something between calls")
    return calls


def _arguments(
    text: str, pattern: str, taken: Callable[[re.Match[str]], tuple[str, str, str | None]]
) -> list[tuple[str, str, str | None]]:
    """Keys, values, and whether these are strings, of items that follow each other with nothing between them."""
    at, found, item = 0, [], re.compile(pattern, re.DOTALL)
    while match := item.match(text, at):
        found.append(taken(match))
        at = match.end()
    if text[at:].strip():
        raise ValueError("something between arguments")
    return found


def _made(name: str, found: Sequence[tuple[str, str, str | None]], tools: Tools) -> Call:
    schema = tools.get(name) or {}
    properties = schema.get("properties") if isinstance(schema.get("properties"), Mapping) else {}
    made = {}
    for key, text, string in found:
        kind = {"true": {"type": "string"}, "false": {}}.get(string or "", (properties or {}).get(key))
        made[key] = cast(text, kind, schema)
    return name, dumps(made)


def one_line_less(text: str) -> str:
    """Without one newline at each end: they belong to the format."""
    return text.removeprefix("\n").removesuffix("\n")


def python(text: str, tools: Tools) -> list[Call]:
    reader = Literals(text)
    calls = []
    if not reader.takes("["):
        raise ValueError("no list of calls")
    while not reader.takes("]"):
        calls.append(_call(reader))
        if not reader.takes(",") and not reader.text.startswith("]", reader.at):
            raise ValueError("something between calls")
    return _all(calls, reader)


def lines(text: str, tools: Tools) -> list[Call]:
    reader, calls = Literals(text), []
    while reader.space() < len(text):
        calls.append(_call(reader))
    return _all(calls, reader)


def _call(reader: Literals) -> Call:
    match = re.compile(r"([^\W\d][\w.-]*)\(").match(reader.text, reader.space())
    if not match:
        raise ValueError("no call")
    reader.at = match.end()
    return match[1], dumps(reader.pairs(")", between="="))


def unquoted(text: str, tools: Tools) -> list[Call]:
    return _called(Literals(text, {'<|"|>': '<|"|>'}, escapes=False))


def escaped(text: str, tools: Tools) -> list[Call]:
    return _called(Literals(text, {"<escape>": "<escape>"}, escapes=False))


def _called(reader: Literals) -> list[Call]:
    match = re.compile(r"call:([^\s{]+)\{").match(reader.text, reader.space())
    if not match:
        raise ValueError("no call")
    reader.at = match.end()
    return _all([(match[1], dumps(reader.pairs("}")))], reader)


def _all(calls: list[Call], reader: Literals) -> list[Call]:
    if reader.space() < len(reader.text):
        raise ValueError("something behind the calls")
    return calls


@dataclass(frozen=True)
class Body:
    """How a body is read, and what in it hides the marks that end one."""

    read: Callable[[str, Tools], list[Call]]
    quotes: Mapping[str, str]
    escapes: bool = False
    first: str = ""  # the pattern of what it begins with, as long as that is all there is; else it is no body


_STRINGS = {'"': '"', "'": "'"}
BODIES: dict[str, Body] = {
    "functions": Body(
        functions, {"<parameter=": "</parameter>"}, first=r"\s*(<(f(u(n(c(t(i(o(n(=.*)?)?)?)?)?)?)?)?)?)?"
    ),
    "pairs": Body(pairs, {"<arg_value>": "</arg_value>"}, first=r"\s*([A-Za-z_].*)?"),
    "dsml": Body(dsml, {"<｜DSML｜parameter ": "</｜DSML｜parameter>"}, first=r"\s*(<.*)?"),
    "python": Body(python, _STRINGS, True, first=r"\[\s*([^\W\d][\w.-]*(\(.*)?)?"),
    "lines": Body(lines, _STRINGS, True, first=r"\s*([^\W\d][\w.-]*(\(.*)?)?"),
    "unquoted": Body(unquoted, {'<|"|>': '<|"|>'}, first=r"\s*(c(a(l(l(:.*)?)?)?)?)?"),
    "escaped": Body(escaped, {"<escape>": "<escape>"}, first=r"\s*(c(a(l(l(:.*)?)?)?)?)?"),
}


def scanner(body: Body, closes: Sequence[str]) -> Scanner:
    """What finds the end of a body: one of the marks, or without any the closing bracket."""
    return Scanner(body.quotes, body.escapes, closes)
