"""Formats that checkpoints describe themselves: read as transformers reads them, or refused with what is not read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS
from transformers.utils.chat_parsing import parse_response

import minillm
from minillm.hub import DEMO
from minillm.serve.answers import Reader, style_of, styles
from minillm.serve.answers.described import read as described
from minillm.serve.answers.described import style_as_described
from tests.helpers.answers import TOOLS, calls_of, read, shown
from tests.helpers.server import Running, serve

WHOLE = {"type": "function", "function": "{content}"}
NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
TEXT = {"open": "<plan>", "close": "</plan>", "content": "text"}
CONTENT = {"close": ["<|over|>"], "content": "text"}


def template(calls: Any, **more: Any) -> dict[str, Any]:
    called = {"repeats": True, "content": "json", **calls}
    fields = {"reasoning_content": TEXT, "tool_calls": called, "content": CONTENT}
    return {"version": 1, "defaults": {"role": "assistant"}, "start_anchor": "<|bot|>", "fields": fields, **more}


TEMPLATES: dict[str, tuple[Any, str]] = {
    "texts": (template({"open": "<call>", "close": "</call>", "transform": WHOLE}), "<call>{whole}</call>"),
    "a pattern": (
        template({"open_pattern": r"\s*<\|call\|>\s*", "close_pattern": r"\s*<\|done\|>", "transform": WHOLE}),
        "\n<|call|>\n{whole}\n<|done|>",
    ),
    "a name": (
        template({"open_pattern": r"\s*<do:(?P<name>[^>\n]+)>", "close": "</do>", "transform": NAMED}),
        "<do:{name}>{arguments}</do>",
    ),
    "a word": (
        template({"open_pattern": r"\[go\](?P<name>\w+)\[with\]", "close": "[end]", "transform": NAMED}),
        "[go]{name}[with]{arguments}[end]",
    ),
    "parameters": (
        template({"open": "<call>", "close": ["</call>"], "transform": {
            "type": "function", "function": {"name": "{content.name}", "arguments": "{content.parameters}"},
        }}),
        "<call>{other}</call>",
    ),
}  # fmt: skip
CALLS: list[Any] = [("weather", {"text": 'a "b" </plan> é', "count": 3, "list": [1, None]}), ("now", {})]


def written(form: str, name: str, given: Any) -> str:
    values = {"name": name, "arguments": json.dumps(given), "whole": json.dumps({"name": name, "arguments": given})}
    values["other"] = json.dumps({"name": name, "parameters": given})
    for key, value in values.items():
        form = form.replace("{" + key + "}", value)
    return form


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize(("given", "form"), TEMPLATES.values(), ids=TEMPLATES)
def test_answers_are_read_as_transformers_reads_them(given: Any, form: str, opened: bool, early: bool) -> None:
    prompt = "Say <plan> to me<|bot|>" + "<plan>\n" * opened
    for text in (
        "Hm.\n</plan>\n\nYes." if opened else "<plan>Hm.</plan>Yes.",
        ("so\n</plan>" if opened else "") + "".join(written(form, *call) for call in CALLS),
        "no\n</plan>Just words." if opened else "Just words.",
    ):
        expected = parse_response(text, given, prefix=prompt)
        found = read(Reader(described(given), prompt, TOOLS, early=early), list(text))
        calls = [each["function"] for each in expected.get("tool_calls", [])]
        assert calls_of(found) == [(each["name"], each["arguments"]) for each in calls]
        assert shown(found, "content") == expected.get("content", "")
        assert shown(found, "reasoning") == expected.get("reasoning_content", "")


def test_an_answer_begins_behind_its_anchor() -> None:
    """Where the prompt has begun to reason, and not where a user speaks of it."""
    style = described(TEMPLATES["texts"][0])
    for prompt, kind in (("Hi<|bot|><plan>\nI think", "reasoning"), ("<plan>\nI think<|bot|>Well,", "content")):
        found = read(Reader(style, prompt, TOOLS, early=False), [" so."], "length")
        assert [piece.kind for piece in found] == [kind]


REFUSED: dict[str, tuple[Any, str]] = {
    "no fields": ({"version": 1}, "no fields"), "no object": ([], "no fields"),
    "another version": (template({}, version=2), "version is 2"),
    "an anchor": (template({}, start_anchor_pattern="x+"), "start_anchor is a pattern"),
    "a field": ({"fields": {"mood": {}}}, "'mood'"), "XML": (template({"content": "xml-inline"}), "'xml-inline'"),
    "a dialect": (template({"content_args": {"unquoted_keys": True}}), "'content_args'"),
    "joined": ({"fields": {"thinking": {**TEXT, "join": ""}}}, "'join'"),
    "a pattern that could run for ever": (template({"open_pattern": "(a+)+$", "close": "x"}), "more than texts"),
    "alternatives": (template({"open_pattern": "<a>|<b>", "close": "x"}), "more than texts"),
    "nothing to open": (template({"open_pattern": r"\s*", "close": "x"}), "no text in open"),
    "an empty text": (template({"open": "", "close": "x"}), "is to be a text"),
    "nothing that closes": (template({"open": "<a>", "close": [], "transform": WHOLE}), "is to be a text"),
    "several": (template({"open": ["<a>", "<b>"], "close": "x"}), "2 texts"),
    "something else": (template({"open": "<a>", "close": "x", "transform": {"function": "f"}}), "something else"),
    "a name elsewhere": (
        template({"open_pattern": r"<(?P<name>\w+)>", "close": "x", "transform": {"function": {"name": "{name}"}}}),
        "name a function by a pattern",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "word"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_said_once(given: Any, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=word):
        described(given)
    assert style_as_described(given, styles["none"]) is styles["none"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--tool-style" in said
    assert style_as_described(given, styles["tagged"]) is styles["tagged"]  # the chat template has said it
    assert not capsys.readouterr().err


@pytest.mark.parametrize("number", range(len(_RESPONSE_TEMPLATE_FALLBACKS)))
def test_a_format_of_the_table_stays_that(number: int) -> None:
    """Those that transformers has for checkpoints without one."""
    given = [*_RESPONSE_TEMPLATE_FALLBACKS.values()][number]
    known = styles[("tagged", "functions", "quoted")[number]]
    assert style_as_described(given, known) is known
    assert style_as_described(None, known) is known


def test_a_checkpoint_is_served_as_it_describes_itself(tmp_path: Path) -> None:
    """Its chat template knows of no tools that we know of; a grammar writes calls in its format."""
    shutil.copytree(DEMO, tmp_path / "demo")
    path = tmp_path / "demo/tokenizer_config.json"
    chat = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}<|story|>"
    given = {**TEMPLATES["a name"][0], "start_anchor": "<|story|>"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "response_template": given, "chat_template": chat}))
    llm = minillm.load(tmp_path / "demo", dtype="float32")
    assert style_of(llm.chat_template().source).name == "none"
    server = Running(serve(llm))
    try:
        schema = {
            "properties": {"n": {"enum": [7]}},
            "required": ["n"],
            "additionalProperties": False,
        }
        tool = {"type": "function", "function": {"name": "pick", "parameters": schema}}
        body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool], "tool_choice": "required",
                "parallel_tool_calls": False, "temperature": 1, "seed": 5}  # fmt: skip
        (made,) = server.post("/v1/chat/completions", body).json()["choices"]
        (call,) = made["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("pick", {"n": 7})
    finally:
        server.stop()
        server.service.close()
