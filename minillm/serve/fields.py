"""A body as the fields of an API: each is used, accepted without effect, or refused by its name.

A `Body` lists the first as its fields, the second in `IDLE`, the third in `REFUSED`; whatever else stands in a body is
refused too. A struct inside it may have an `IDLE` of its own. null means absent, as in OpenAI's API.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from minillm.guard.screen import shown
from minillm.serve.errors import Refusal
from minillm.serve.settings import MAX_DEPTH, MAX_NESTED, MAX_VALUES


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields that are used. `IDLE` and `REFUSED` say why the others are not."""

    IDLE: ClassVar[Mapping[str, str]] = {}
    REFUSED: ClassVar[Mapping[str, str]] = {}


Kind = TypeVar("Kind", bound=Body)


def parsed(data: bytes) -> dict[str, Any]:
    """A body as a JSON object. Raises Refusal for anything else, NaN, numbers beyond a float and lone surrogates."""
    for marks, most, what in ((b"[{", MAX_NESTED, "brackets and braces"), (b",", MAX_VALUES, "commas")):
        if sum(data.count(mark) for mark in marks) > most:  # those in texts too, as this is to be quick
            raise Refusal(413, f"the body has more than {most:,} {what}; send less", "body_too_large")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, f"the body is not JSON: {why}", "invalid_json") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"the body is {shown(value)}, expected a JSON object", "invalid_json")
    if depth(value) > MAX_DEPTH:
        raise Refusal(400, f"the body is nested deeper than the {MAX_DEPTH} levels allowed", "invalid_json")
    return value


def depth(value: Any) -> int:
    """How deeply a JSON value is nested."""
    levels, layer = 0, [value]
    while layer:
        levels += 1
        layer = [
            inner
            for each in layer
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
    return levels


def read(value: dict[str, Any], kind: type[Kind]) -> tuple[Kind, list[str]]:
    """The fields of a body, and the names of those that are accepted without effect. Raises Refusal."""
    given = {name: each for name, each in value.items() if each is not None}
    idle = sorted(set(given) & set(kind.IDLE))
    for name, why in kind.REFUSED.items():
        if given.get(name):
            raise Refusal(400, f"{name} is not supported: {why}", "unsupported_parameter", name)
    kept = {name: each for name, each in given.items() if name not in kind.IDLE and name not in kind.REFUSED}
    used = kind.__struct_encode_fields__
    if unknown := sorted(set(kept) - set(used)):
        near = difflib.get_close_matches(unknown[0][:60], [*used, *kind.IDLE], 1)
        advice = f"did you mean {near[0]}?" if near else "leave it out"
        raise Refusal(400, f"unknown field {shown(unknown[0])}; {advice}", "unknown_parameter", unknown[0][:60])
    found = converted(kept, kind)
    return found, idle + [each for name in used for each in _idle_inside(name, getattr(found, name))]


def _idle_inside(name: str, value: Any) -> list[str]:
    """The paths of what is without effect in a struct inside a body."""
    if not isinstance(value, msgspec.Struct):
        return []
    here = [f"{name}.{each}" for each in getattr(value, "IDLE", ()) if getattr(value, each) is not None]
    inner = value.__struct_fields__
    return here + [path for each in inner for path in _idle_inside(f"{name}.{each}", getattr(value, each))]


def converted(value: Any, kind: type[Any]) -> Any:
    """A JSON value as another type. Raises Refusal that names the field."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found = re.search(r"`\$((?:\.\w+|\[[^\]]*\])*)`", str(error))
        param = found[1].lstrip(".") if found and found[1] else None
        raise Refusal(400, str(error).replace("`$.", "`"), "invalid_value", param) from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply", "invalid_json") from None
