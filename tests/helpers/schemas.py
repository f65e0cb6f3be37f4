"""Schemas to make JSON by, a small check of JSON against them, and schemas that are meant to do harm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minillm.serve.answers.values import TYPES

GOOD: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object", "required": ["city"], "additionalProperties": False,
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    },
    "paint": {
        "type": "object", "required": ["colour", "layers"], "additionalProperties": False,
        "properties": {
            "colour": {"enum": ["red", "dark blue", 'a "b"']}, "exact": {"type": "boolean"},
            "layers": {"type": "array", "items": {"$ref": "#/$defs/Layer"}, "minItems": 1, "maxItems": 2},
        },
        "$defs": {"Layer": {"type": "object", "required": ["size"], "additionalProperties": False,
                            "properties": {"size": {"type": "integer", "maximum": 99, "minimum": 0}}}},
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}  # fmt: skip


def fits(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> bool:
    """Whether a value is one of a schema that uses the keywords above."""
    root = schema if root is None else root
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return False
    if kind == "array":
        size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return size and all(fits(each, schema["items"], root) for each in value)
    if kind == "object":
        known = schema["properties"]
        return {*schema.get("required", ()), *value} <= {*known, *value} and all(
            key in known and fits(each, known[key], root) for key, each in value.items()
        ) and {*schema.get("required", ())} <= {*value}  # fmt: skip
    if kind == "integer":
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return re.search(schema.get("pattern", ""), value) is not None if kind == "string" else True


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        found = {"type": "object", "properties": {"a": found}}
    return found


def doubling(levels: int) -> dict[str, Any]:
    """References each of which has the next one twice: 2^levels objects when spelled out."""
    defs: dict[str, Any] = {f"d{levels}": {"type": "integer"}}
    for level in range(levels):
        following = {"$ref": f"#/$defs/d{level + 1}"}
        defs[f"d{level}"] = {"type": "object", "properties": {"a": following, "b": following}}
    return {"$ref": "#/$defs/d0", "$defs": defs}


def _text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


# What is refused, and a word of the refusal.
REFUSED: dict[str, tuple[Any, str]] = {
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "contains": ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    "not": ({"not": {"type": "string"}}, "not"),
    "if": ({"type": "object", "if": {}, "then": {}}, "if"),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
    "type": ({"type": "stsring"}, "stsring"),
    "format": ({"type": "string", "format": "klingon"}, "klingon"),
    "remote": ({"$ref": "http://example.com/schema"}, "example.com"),
    "file": ({"$ref": "file:///etc/passwd"}, "passwd"),
    "look-around": (_text("a(?=b)"), "look-around"),
    "contradiction": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    "deep": (nested(200), "levels"),
    "deeper": (nested(5000), "levels"),
    "wide": ({"enum": [f"value {at}" for at in range(100_000)]}, "characters"),
    "long": ({"const": "x" * 300_000}, "characters"),
    "properties": ({"properties": {f"p{at}": {"type": "integer"} for at in range(20_000)}}, "characters"),
    "number": ({"type": 5}, "type"),
    "false": (False, "false"),
}  # fmt: skip
# What may be refused or not, within bounds.
HOSTILE: dict[str, Any] = {
    "doubling": doubling(40),
    "parentheses": _text("(" * 30_000 + ")" * 30_000),
    "repeats": _text("((((a{1,99}){1,99}){1,99}){1,99}){1,99}"),
    "states": _text("(a|b)*a(a|b){300}"),
    "slow": _text("^(a+)+$"),
    "length": {"type": "string", "minLength": 1_000_000_000, "maxLength": 1_000_000_000},
    "items": {"type": "array", "minItems": 1_000_000_000, "items": {"type": "integer"}},
    "any": {"anyOf": [{"type": "object", "properties": {f"p{at}": {"type": "integer"}}, "required": [f"p{at}"]}
                      for at in range(2000)]},
    "products": {"allOf": [{"anyOf": [{"properties": {f"p{a}{b}": {"const": b}}} for b in range(5)]}
                            for a in range(8)]},
    "loop": {"$ref": "#"},
    "guidance": {"type": "object", "x-guidance": {"lenient": True, "whitespace_flexible": True}},
}  # fmt: skip
