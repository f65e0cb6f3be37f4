"""What may be written, as one grammar for llguidance: calls in the format of a style, JSON by a schema, reasoning.

    start: reasoning? calls            tool_choice "required", or the name of a tool
    start: reasoning? JSON             response_format
    start: reasoning? (text call)* text    tool_choice "auto": what opens a call must be one

Marks that are special tokens stand in it as ids, so that text cannot be taken for them. `%json` compiles a schema, and
refuses keywords that it does not know. The whole is Lark's notation, as llguidance extends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from minillm.serve.answers.guides import Guide, Vocabulary, vocabulary
from minillm.serve.answers.reader import Reader
from minillm.serve.answers.styles import TURN, Form, Style
from minillm.serve.answers.values import types_of
from minillm.text.tokenizer import Tokenizer

MAX_CHARACTERS, MAX_DEPTH = 200_000, 48  # of a schema
BLANKS = r"[ \n\t]{0,16}"  # between the parts of JSON: a model that may write blanks for ever does
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
AGAIN = "<|end|><|start|>assistant"


def compiled(
    tokenizer: Tokenizer | None, style: Style, tools: Sequence[Mapping[str, Any]], tool_choice: str, parallel: bool,
    response_format: Mapping[str, Any] | None, prompt_tail: str, ends: Collection[int] = (),
) -> Guide | None:  # fmt: skip
    """The guide of one answer; None where anything may be written. It may take a second, the first one of a tokenizer
    several: call it off the event loop.

    `tools` are {"type": "function", "function": {"name", "parameters"}}, `tool_choice` is "none", "auto", "required" or
    the name of a tool, `parallel` whether there may be several calls. `ends` are the ids that may end an answer
    (default: the tokenizer's). Raises ValueError for a schema with a keyword that cannot be enforced, for a style whose
    calls have no grammar, and where there is no tokenizer.json or no llguidance.
    """
    schema = wanted(response_format)
    functions = [tool["function"] for tool in tools if tool_choice != "none"]
    if tool_choice not in ("none", "auto", "required"):
        functions, parallel = [each for each in functions if each["name"] == tool_choice], False
    if tool_choice not in ("none", "auto") and not functions:
        raise ValueError(f"tool_choice {tool_choice!r} has no tool to call; give one in tools")
    if schema is None and not functions:
        return None
    if functions and style.form is None:
        raise ValueError(f"calls in the format {style.name!r} have no grammar; leave out tool_choice and strict")
    named: dict[str, Any] = {f"the parameters of {each['name']}": parameters(each) for each in functions}
    named.update({"response_format": schema} if schema is not None else {})
    for where, each in named.items():
        measure(where, each)
    words = vocabulary(tokenizer, ends)
    writer = Writer(words, style, prompt_tail)
    return words.guide(writer.lark(functions, tool_choice, parallel, schema), named)


def wanted(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | bool | None:
    """The schema that a response_format asks for; None for text."""
    kind = (response_format or {}).get("type", "text")
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        found = (response_format or {}).get("json_schema") or {}
        if not isinstance(found.get("schema"), (dict, bool)):
            raise ValueError("response_format of type json_schema has no schema; give one in json_schema.schema")
        return found["schema"]
    if kind != "text":
        raise ValueError(f"response_format of type {str(kind)[:40]!r}, expected text, json_object or json_schema")
    return None


def parameters(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a function's arguments, which are an object."""
    schema = function.get("parameters") or NOTHING
    return schema if "type" in schema or "$ref" in schema else {"type": "object", **schema}


def measure(where: str, schema: Any) -> None:
    """Raises ValueError for a schema that is larger or deeper than any that people write."""
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"{where}: a schema of more than {MAX_DEPTH} levels; use $ref")
        holders = [
            each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))
        ]
        level = [inner for each in holders for inner in each]
    size = len(json.dumps(schema))
    if size > MAX_CHARACTERS:
        raise ValueError(f"{where}: a schema of {size:,} characters, at most {MAX_CHARACTERS:,} are allowed")


class Writer:
    """Writes the rules of one grammar."""

    def __init__(self, words: Vocabulary, style: Style, tail: str):
        self.words, self.style, self.tail = words, style, tail
        self.rules: list[str] = ["TEXT: /(?s:.+)/"]

    def rule(self, body: str, flags: str = "") -> str:
        """A new rule, by its name."""
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}{flags}: {body}")
        return name

    def lark(self, functions: Sequence[Any], choice: str, parallel: bool, schema: Any) -> str:
        bodies = []
        if functions and (choice != "auto" or schema is not None):
            bodies.append(self._calls(functions, parallel))
        if schema is not None:
            answer = self.json(schema)
            bodies.append(f"{self.text(FINAL)} {answer}" if self.style.channels else answer)
        if not bodies:
            bodies = [self._free(functions, parallel)]
        self.rules.append(f"start: {self._reasoning()} ({' | '.join(bodies)})")
        return "\n".join(self.rules)

    def json(self, schema: Any) -> str:
        if not isinstance(schema, dict):
            schema = {} if schema else {"not": {}}
        return self.rule("%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": BLANKS}}))

    def text(self, text: str) -> str:
        """A text, with special tokens as such."""
        return " ".join(self.words.literals(text)) or '""'

    def up_to(self, mark: str) -> str:
        """Any text with a mark behind it, which is not in it."""
        literals = self.words.literals(mark)
        if literals[0].startswith("<["):
            return f"TEXT? {' '.join(literals)}"
        return self.rule(f"/(?s:.*){_escaped(mark)}/", "[lazy]")

    def _reasoning(self) -> str:
        """What may, or must, come before the answer, as the prompt leaves it."""
        state = Reader(self.style, self.tail)
        if self.style.channels:
            again = f"({self.text(ANALYSIS)} {self.up_to(AGAIN)})*"
            return f"{self.up_to(AGAIN)} {again}" if state.part == "reasoning" else again
        if state.part == "reasoning":
            behind = next(each.behind for each in self.style.thinking if each.closes == state.closing)
            return f"{self.up_to(state.closing)} {self._behind(behind)}"
        turns = list(TURN.finditer(self.tail))
        turn = self.tail[turns[-1].end() if turns else -40 :]
        options = []
        for each in self.style.thinking:
            if each.closes not in turn:
                opens = each.opens[len(state.buffer) :] if each.opens.startswith(state.buffer) else each.opens
                options.append(f"{self.text(opens)} {self.up_to(each.closes)} {self._behind(each.behind)}")
        return f"({' | '.join(options)})?" if options else ""

    def _behind(self, text: str) -> str:
        return self.text(text) if text else "/\\n{0,3}/"

    def _calls(self, functions: Sequence[Any], parallel: bool, skipped: str = "") -> str:
        """A list of calls, without the mark that it begins with."""
        form = self._form()
        each = self._each(functions, form)
        first = self._each(functions, form, skipped) if skipped and not form.start else each
        more = f"({self.text(form.join)} {each})*" if parallel and not self.style.channels else ""
        start = form.start[len(skipped) :]
        parts = [self.text(start) if start else "", first, more, self.text(form.end) if form.end else ""]
        return self.rule(" ".join(filter(None, parts)))

    def _form(self) -> Form:
        assert self.style.form is not None  # `compiled` has looked
        return self.style.form

    def _each(self, functions: Sequence[Any], form: Form, skipped: str = "") -> str:
        """A call of one of the functions."""
        options = []
        for function in functions:
            before, number, rest = form.before[len(skipped) :].partition("NUMBER")
            before, rest = (each.replace("NAME", function["name"]) for each in (before, rest))
            opens = self.text(before) + (f" /[0-9]{{1,3}}/ {self.text(rest)}" if number else "")
            schema = parameters(function)
            arguments = self._items(schema, form) if form.item else self.json(schema)
            options.append(f"{opens} {arguments} {self.text(form.after) if form.after else ''}")
        return self.rule(" | ".join(options))

    def _items(self, schema: Mapping[str, Any], form: Form) -> str:
        """Parameters one by one, in the order of the schema. From the last on: what may follow another one, behind a
        comma, and what may stand first."""
        later = first = '""'
        for key, each in reversed((schema.get("properties") or {}).items()):
            value = self._value(key, each if isinstance(each, dict) else {}, schema, form)
            needed = key in (schema.get("required") or ())
            comma = self.text(form.comma) if form.comma else ""
            first = self.rule(f"{value} {later}" if needed else f"{value} {later} | {first}")
            later = self.rule(f"({comma} {value}){'' if needed else '?'} {later}")
        return first

    def _value(self, key: str, schema: Mapping[str, Any], root: Mapping[str, Any], form: Form) -> str:
        """A parameter with what stands around it."""
        types = types_of(schema, root)
        plain = types == {"string"} and not {"pattern", "format", "minLength", "maxLength"} & set(schema)
        before, after = (form.item or ("", ""))[0].replace("KEY", key), (form.item or ("", ""))[1]
        opens = self.text(before.replace("STRING", str(plain).lower()))
        if plain and form.quote != "JSON":
            quoted = f"{self.text(form.quote)} " if form.quote else ""
            words = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
            if words is None:
                return self.rule(f"{opens} {quoted}{self.up_to(form.quote + after)}")
            return self.rule(f"{opens} {quoted}({' | '.join(map(self.text, words))}) {self.text(form.quote + after)}")
        odd = {"array", "object"} if form.quote not in ("", "JSON") else set()
        if form.quote != "JSON" and (not types or types & {"string", *odd}):
            raise ValueError(
                f"the parameter {key[:60]!r} has no grammar in the format {self.style.name!r}, as it may be text with "
                "limits, a list, or of several types; leave out tool_choice and strict"
            )
        also = ""  # as Python has it
        if form.quote == "JSON" and not {"enum", "const"} & set(schema):
            also = r" | /'([^'\\\n]|\\['\\n])*'/" if plain else " | /True|False/" if types == {"boolean"} else ""
        definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
        return self.rule(f"{opens} ({self.json({**schema, **definitions})}{also}) {self.text(after) if after else ''}")

    def _free(self, functions: Sequence[Any], parallel: bool) -> str:
        """Text in which what opens a call must be one."""
        style, form = self.style, self._form()
        if style.channels:
            return f"{self._calls(functions, parallel)} | {self.text(FINAL)} TEXT"
        if style.bare:
            return f"{self._calls(functions, parallel)} | /(\\s*[^\\s{_escaped(style.bare)}](?s:.*))?/"
        begins = form.start or form.before
        mark = next(mark for mark in (*style.opens, *style.drops) if begins.startswith(mark))
        call = f"{self.up_to(mark)} {self._calls(functions, parallel, mark)}"
        plain = "TEXT"
        if not self.words.literals(mark)[0].startswith("<["):
            self.rules.append(f"PLAIN: TEXT & ~/(?s:.*){_escaped(mark)}(?s:.*)/")
            plain = "PLAIN"
        return f"({call}){'*' if parallel else '?'} {plain}?"


def _escaped(text: str) -> str:
    """A text as it stands in a regular expression of the grammar."""
    return re.sub(r"([\\.+*?()|\[\]{}^$/])", r"\\\1", text).replace("\n", "\\n")
