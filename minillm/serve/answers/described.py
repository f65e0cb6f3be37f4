"""A checkpoint's own description of how it writes calls and reasoning, as a row of the table in `styles.py`: the
`response_template` of a tokenizer_config.json, which transformers reads.

It has fields of a message, and what opens and closes each. What it gives as regular expressions are a stranger's, which
nothing runs: read are those that are a text, white space, and the name of the function. Calls are JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minillm.guard.screen import note, shown
from minillm.serve.answers.styles import NAMED, Form, Style, Thinking

DESCRIBED = "described"
REASONING = ("reasoning_content", "reasoning", "thinking")
KNOWN = {"open", "open_pattern", "close", "close_pattern", "content", "repeats", "optional", "transform"}
WHOLE = [{"name": "{content.name}", "arguments": f"{{content.{key}}}"} for key in ("arguments", "parameters")]
_PARTS = re.compile(
    r"\\s[*+]|(?P<name>\(\?P<name>(?:\\w|\\S|\[[^\]]+\])\+\??\))"
    r"|\\(?P<escaped>[^\w\s])|(?P<plain>[^\\()\[\]{}|*+?.^$])"
)


def style_as_described(description: Any, known: Style) -> Style:
    """The row that a description amounts to, where `known`, which the chat template says, has not all of its marks. One
    that cannot be read is noted where nothing else is known."""
    if description is None:
        return known
    try:
        made = read(description)
    except ValueError as error:
        if known.name == "none":
            note(f"tokenizer_config.json: response_template is not used: {error}; see --tool-style")
        return known
    marks = {*made.opens, *(each.opens for each in made.thinking)}
    return known if marks <= {*known.opens, *(each.opens for each in known.thinking)} else made


def read(description: Any) -> Style:
    """The row of a description. Raises ValueError that names what of it is not read."""
    if not isinstance(description, Mapping) or not isinstance(description.get("fields"), Mapping):
        raise ValueError("it has no fields")
    if (version := description.get("version", 1)) != 1:
        raise ValueError(f"its version is {shown(version)}, version 1 is read")
    if "start_anchor_pattern" in description:
        raise ValueError("its start_anchor is a pattern, a text is read")
    fields = dict(description["fields"])
    fields.pop("content", None)  # what is left; what closes it are tokens that end an answer
    calls = fields.pop("tool_calls", None)
    thinking = tuple(_thinking(name, fields.pop(name)) for name in REASONING if name in fields)
    if fields:
        raise ValueError(f"its field {shown(next(iter(fields)))} is not one that answers have here")
    turns = tuple(_texts("start_anchor", description["start_anchor"])) if description.get("start_anchor") else ()
    base = Style(DESCRIBED, thinking=thinking, turns=turns)
    return base if calls is None else _with_calls(base, calls)


def _checked(name: str, field: Any, content: str) -> Mapping[str, Any]:
    if not isinstance(field, Mapping):
        raise ValueError(f"its field {name} is no object")
    if more := sorted(set(field) - KNOWN):
        raise ValueError(f"{more[0]!r} of its field {name} is not read")
    if (found := field.get("content", "text")) != content:
        raise ValueError(f"its field {name} has the content {shown(found)}, {content} is read")
    return field


def _thinking(name: str, field: Any) -> Thinking:
    given = _checked(name, field, "text")
    opens, closes = _texts(name, given.get("open")), _texts(name, given.get("close"))
    if len(opens) != 1 or len(closes) != 1:
        raise ValueError(f"its field {name} needs one text in open, and one in close")
    return Thinking(opens[0], closes[0])


def _with_calls(base: Style, field: Any) -> Style:
    given = _checked("tool_calls", field, "json")
    before, name, behind = _opening(given)
    closes = tuple(_texts("tool_calls", given["close"]) if "close" in given else [_opening(given, "close")[0]])
    function = given.get("transform", {}).get("function") if isinstance(given.get("transform"), Mapping) else None
    if name and function != {"name": "{name}", "arguments": "{content}"}:
        raise ValueError("its tool_calls name a function by a pattern, and make something else of it")
    if not name and function != "{content}" and function not in WHOLE:
        raise ValueError("its tool_calls make something else of their JSON than a function and its arguments")
    lead = rf"\s*(?P<name>[^\s<>\[\](){{}}]+)\s*{re.escape(behind.strip())}\s*" if name else r"\s*"
    form = Form(f"{before}NAME{behind}", closes[0]) if name else Form(f"{before}{NAMED}", "}" + closes[0])
    return replace(base, body="json", opens=(before,), lead=lead, closes=closes, form=form)


def _opening(field: Mapping[str, Any], key: str = "open") -> tuple[str, bool, str]:
    """The text that a mark begins with, whether the function's name follows, and the text behind it."""
    if key in field:
        texts = _texts("tool_calls", field[key])
        if len(texts) != 1:
            raise ValueError(f"{key} of its tool_calls has {len(texts)} texts, one is read")
        return texts[0], False, ""
    pattern, parts, at, named = field.get(f"{key}_pattern"), ["", ""], 0, False
    while isinstance(pattern, str) and at < len(pattern):
        match = _PARTS.match(pattern, at)
        if match is None or (match["name"] and (named or key == "close")):
            raise ValueError(f"{key}_pattern of its tool_calls is more than texts and a name")
        at, named = match.end(), named or match["name"] is not None
        parts[named] += match["escaped"] or match["plain"] or ""
    if not parts[0].strip():
        raise ValueError(f"its tool_calls have no text in {key}")
    return parts[0].strip(), named, parts[1]


def _texts(name: str, given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(each, str) and each.strip() for each in texts):
        raise ValueError(f"its {name} has {shown(given)} for what is to be a text")
    return texts
