"""Calls of tools and reasoning in every format: whole, and cut anywhere."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.serve.answers import Reader, styles
from tests.helpers.answers import TOOLS, WRITERS, calls_of, read, reader, shown

FULL = {
    "text": "a \"b\" \\ é 😀 'c' {d} [e] <f>", "count": -3, "size": 2.5e-3, "flag": True, "nothing": None,
    "list": [1, "zwei", False, None], "thing": {"a": {"b": [{}]}},
}  # fmt: skip
PARALLEL = [("weather", {"text": "Paris", "count": 3}), ("now", {})]
EITHER = pytest.mark.parametrize("early", [True, False])
EVERY = pytest.mark.parametrize("style", sorted(WRITERS))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=30)


def whole(style: str, text: str, **how: Any) -> Any:
    return read(reader(style, **how), [text])


def same_when_cut(style: str, text: str, rounds: int = 100, reason: str = "stop", **how: Any) -> None:
    """In every two parts, in `rounds` random ways, and in single characters."""
    expected = read(reader(style, **how), [text], reason)
    cuts = [[at] for at in range(1, len(text))]
    draw = random.Random(text)
    inside = range(1, len(text))
    cuts += [sorted(draw.sample(inside, draw.randint(0, min(12, len(inside))))) for _ in range(rounds)]
    for cut in [*cuts, list(range(1, len(text)))]:
        parts = [text[begin:end] for begin, end in zip([0, *cut], [*cut, len(text)], strict=True)]
        assert read(reader(style, **how), parts, reason) == expected, parts


def test_every_style_has_a_writer() -> None:
    assert {style.split()[0] for style in WRITERS} == set(styles) - {"none"}


@EITHER
@EVERY
def test_no_call_is_content(style: str, early: bool) -> None:
    text = " An answer with <b>marks</b>, {braces} and [lists].\n"
    tail = "<|start|>assistant<|channel|>final<|message|>" if style.startswith("channels") else ""
    assert shown(whole(style, text, tail=tail, early=early), "content") == text


@EITHER
@EVERY
@pytest.mark.parametrize("calls", [[("weather", {"text": "Paris"})], [("now", {})], [("weather", FULL)], PARALLEL])
def test_calls_are_read(style: str, calls: Any, early: bool) -> None:
    text = WRITERS[style](calls)
    found = whole(style, text, early=early)
    assert calls_of(found) == calls
    assert {piece.kind for piece in found} == {"call", "arguments"}
    assert [piece.index for piece in found if piece.kind == "call"] == list(range(len(calls)))


@EITHER
@EVERY
def test_text_stands_around_calls(style: str, early: bool) -> None:
    before, after = "Let me see.\n\n", "\nDone so far."
    if style.startswith("channels"):
        before = "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant"
        after = "<|start|>assistant<|channel|>final<|message|>Done so far."
    elif styles[style.split()[0]].bare and style != "bare tag":
        before = ""  # such calls are an answer of their own
    found = whole(style, before + WRITERS[style](PARALLEL) + after, early=early)
    assert calls_of(found) == PARALLEL
    assert shown(found, "content").split() == [*(["Let", "me", "see."] if before else []), "Done", "so", "far."]


@EITHER
@EVERY
def test_cutting_changes_nothing(style: str, early: bool) -> None:
    same_when_cut(style, WRITERS[style]([("weather", FULL)]) + " and", early=early)
    text = WRITERS[style](PARALLEL)
    same_when_cut(style, text + " and", early=early)
    same_when_cut(style, text.replace("weather", "wetter"), early=early, rounds=10)
    same_when_cut(style, text[: len(text) * 2 // 3], early=early, rounds=10, reason="length")
    same_when_cut(style, text.replace("}", "", 1).replace(")", "", 1) + " end", early=early, rounds=10)


@EITHER
@EVERY
def test_a_call_of_no_known_tool_is_text(style: str, early: bool) -> None:
    text = WRITERS[style]([("unknown", {"text": "x"})])
    found = whole(style, text, early=early)
    assert {piece.kind for piece in found} == {"content"}
    for mark in styles[style.split()[0]].drops:
        text = text.replace(mark, "")
    assert shown(found, "content") == text.removesuffix("<|call|>")


@EITHER
@EVERY
def test_without_tools_nothing_is_a_call(style: str, early: bool) -> None:
    found = whole(style, WRITERS[style](PARALLEL), tools={}, early=early)
    assert {piece.kind for piece in found} == {"content"}
    assert "Paris" in shown(found, "content")


@EVERY
def test_what_is_no_json_comes_back_as_text(style: str) -> None:
    """Where all is looked at before it is given out."""
    text = WRITERS[style]([("weather", {"text": "x", "count": 1})])
    broken = re.sub(r"\bcount\b(\W+)1", r"count\1:,", text)
    for mark in ("</parameter>", "</arg_value>", "</｜DSML｜parameter>"):
        before, found_mark, after = broken.rpartition(mark)
        broken = before + after if found_mark else broken
    found = whole(style, broken, early=False)
    assert {piece.kind for piece in found} == {"content"}
    assert "count" in shown(found, "content")


@EITHER
@EVERY
def test_a_truncated_call_is_never_whole(style: str, early: bool) -> None:
    """Cut anywhere before its arguments end, there is no call, or one whose arguments have not ended."""
    text = WRITERS[style]([("weather", {"text": "Par", "thing": {"a": [1, 2]}})])
    for size in range(1, text.index("2]") + 4):
        found = read(reader(style, early=early), [text[:size]], "length")
        for piece in found:
            if piece.kind == "arguments":
                assert early
                with pytest.raises(ValueError, match=r"."):
                    calls_of(found)
    assert early or not any(piece.kind == "call" for piece in found)


@settings(max_examples=60)
@given(data=st.data(), style=st.sampled_from(sorted(WRITERS)))
def test_random_answers_are_the_same_in_parts(data: st.DataObject, style: str) -> None:
    value = st.recursive(
        st.none() | st.booleans() | st.integers(-99, 99) | TEXT, lambda inner: st.lists(inner, max_size=3), max_leaves=5
    )
    values = {
        "text": TEXT, "count": st.integers(), "flag": st.booleans(), "list": st.lists(value, max_size=3),
        "thing": st.dictionaries(st.sampled_from("abc"), value, max_size=2),
    }  # fmt: skip
    arguments = data.draw(st.fixed_dictionaries({}, optional=values))
    text = data.draw(TEXT) + WRITERS[style]([("weather", arguments)]) + data.draw(TEXT)
    early = data.draw(st.booleans())
    parts, left = [], text
    while left:
        size = data.draw(st.integers(1, len(left)))
        parts.append(left[:size])
        left = left[size:]
    assert read(reader(style, early=early), parts) == read(reader(style, early=early), [text])


@settings(max_examples=200)
@given(data=st.data())
def test_no_text_raises(data: st.DataObject) -> None:
    """Marks and fragments in any order."""
    style = data.draw(st.sampled_from(sorted(styles)))
    row = styles[style]
    marks = [*row.opens, *row.closes, *row.drops, row.bare, row.joint, *'{}[]"\\,:\n', "<think>", "</think>"]
    marks += ["<|channel|>", "<|message|>", "<|end|>", "weather", " to=weather ", '"name"', '"arguments"', "call:", "("]
    marks += ["<function=weather>", "<parameter=text>", "</parameter>", "</function>", "<arg_key>", "<arg_value>"]
    parts = data.draw(st.lists(st.sampled_from(marks) | TEXT, max_size=25))
    reason = data.draw(st.sampled_from(["stop", "length", "cancelled"]))
    early = data.draw(st.booleans())
    found = read(Reader(row, "", TOOLS, early=early), parts, reason)
    assert found == read(Reader(row, "", TOOLS, early=early), ["".join(parts)], reason)
    if not early:
        calls_of(found)


def test_ids_are_as_clients_want_them() -> None:
    def ids(style: str) -> list[str]:
        made = reader(style)
        pieces = [*made.push(WRITERS[style](PARALLEL)), *made.finish("stop")]
        return [piece.id for piece in pieces if piece.kind == "call"]

    assert all(re.fullmatch(r"call_[A-Za-z0-9]{24}", each) for each in ids("tagged"))
    assert all(re.fullmatch(r"[A-Za-z0-9]{9}", each) for each in ids("array"))
    assert len({*ids("tagged"), *ids("tagged")}) == 4
    assert ids("counted") == ["functions.weather:0", "functions.now:1"]
    assert ids("named id") == ["abcdefghi"] * 2


def test_json_arguments_are_given_out_while_they_are_written() -> None:
    for style in ("tagged", "bare", "array", "named", "fenced", "separated", "counted", "channels", "requests"):
        text = WRITERS[style]([("weather", {"text": "long " * 30})])
        made = reader(style)
        found = made.push(text[: text.index("long long")])
        assert found[0].text == "weather", style
        assert found[1].text.startswith('{"text": "'), style


def work(text: str, style: str) -> int:
    """Characters that regular expressions and searches go through: bounded by counting steps of the reader."""
    made = reader(style)
    steps = 0
    step = made._step

    def counted() -> bool:
        nonlocal steps
        steps += 1 + len(made.buffer)
        return step()

    made._step = counted  # type: ignore[method-assign]
    for character in text:
        made.push(character)
    made.finish("stop")
    return steps


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("tagged", "<tool_call>"), ("tagged", '<tool_call>{"name": "weather", "arguments": {"text": "'),
        ("tagged", "<tool_call>{"), ("functions", "<tool_call>\n<function=weather>\n"), ("tagged", "\n"),
        ("functions", "</tool_call>"), ("channels", "<|channel|>"), ("python", "[weather("), ("none", "<thin"),
    ],
)  # fmt: skip
def test_work_grows_with_the_text(style: str, text: str) -> None:
    once, twice = work(text * 200, style), work(text * 400, style)
    assert twice < 2.2 * once
