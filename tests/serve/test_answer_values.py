"""Text to values by a schema, and literals."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.serve.answers.values import cast, literal, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)  # fmt: skip


@given(VALUES)
def test_literals_are_those_of_python_and_of_json(value: Any) -> None:
    assert literal(repr(value)) == ast.literal_eval(repr(value)) == value
    assert literal(json.dumps(value, ensure_ascii=False)) == value
    assert literal(json.dumps(value)) == value


@given(st.text(st.sampled_from("[](){}'\",:\\x1.-eTrue None"), max_size=40))
def test_a_literal_is_one_of_pythons_or_none(text: str) -> None:
    try:
        found = literal(text)
    except ValueError:
        return
    assert isinstance(found, (type(None), bool, int, float, str, list, dict))


@pytest.mark.parametrize("text", ["", "[", "{'a'}", "f(x)", "1 2", "'a", "[1 2]", "{'a': 1, 'a': 2}", "inf", "nan", "x",
                                  "[" * 100 + "]" * 100, "'\\ud800'", "1e999", "'\\xzz'", "__import__"])  # fmt: skip
def test_what_is_no_literal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        literal(text)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", '"\\ud800"', "[" * 5000, "{", "'a'"])
def test_json_is_strict(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(text)


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("3", {"type": "string"}, "3"),
        ('"a"', {"type": "string"}, '"a"'),
        ("3", {"type": "integer"}, 3), ("3", {"type": "number"}, 3),
        ("2.5", {"type": "number"}, 2.5), ("true", {"type": "boolean"}, True), ("False", {"type": "boolean"}, False),
        ("null", {"type": ["string", "null"]}, None), ("nul", {"type": ["string", "null"]}, "nul"),
        ("5", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, 5),
        ("true", {"type": ["integer", "string"]}, "true"),
        ("['a', None]", {"type": "array"}, ["a", None]), ('{"a": null}', {"type": "object"}, {"a": None}),
        ("a", {"enum": ["a", "b"]}, "a"), ("1", {"enum": [1, 2]}, 1), ("1", {"const": "1"}, "1"),
        ("x y", {"type": "integer"}, "x y"), ("3", {}, 3), ("three", {}, "three"), ("3", None, 3),
        ("2", {"$ref": "#/$defs/Size"}, "2"), (" 4 ", {"type": "integer"}, 4), ("1", {"$ref": "#/$defs/Loop"}, 1),
    ],
)  # fmt: skip
def test_a_text_is_cast_by_its_schema(text: str, schema: Any, value: Any) -> None:
    root = {"$defs": {"Size": {"enum": ["1", "2"]}, "Loop": {"$ref": "#/$defs/Loop"}}}
    found = cast(text, schema, root)
    assert found == value
    assert type(found) is type(value)
