"""Objects inside bodies: every field that a client's own types have is used, without effect and said to be, or refused
by its name; and the page says which."""

from __future__ import annotations

from typing import Any, get_args

import anthropic.types as claude
import ollama._types as llama
import openai.types.chat as chat
import openai.types.responses as items
import pytest
from openai.types.responses import response_input_param

from minillm.serve.apis import anthropic, objects, openai_chat, responses
from minillm.serve.apis.objects import OBJECTS, Object, plain_text, taken
from minillm.serve.errors import Refusal
from tests.conftest import ROOT
from tests.helpers.server import Running

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
# The types of the clients for what the server reads.
TYPES: list[tuple[Any, Object]] = [
    (claude.MessageParam, objects.BLOCKS_MESSAGE),
    (claude.TextBlockParam, objects.TEXT),
    (claude.ThinkingBlockParam, objects.THINKING),
    (claude.RedactedThinkingBlockParam, objects.REDACTED),
    (claude.ToolUseBlockParam, objects.TOOL_USE),
    (claude.ToolResultBlockParam, objects.TOOL_RESULT),
    (claude.ToolParam, objects.BLOCKS_TOOL),
    (chat.ChatCompletionAssistantMessageParam, objects.MESSAGE),
    (chat.ChatCompletionUserMessageParam, objects.MESSAGE),
    (chat.ChatCompletionToolMessageParam, objects.MESSAGE),
    (chat.ChatCompletionMessage, objects.MESSAGE),  # which comes back with the next request
    (chat.ChatCompletionContentPartTextParam, objects.TEXT),
    (chat.ChatCompletionMessageFunctionToolCallParam, objects.CALL),
    (chat.ChatCompletionFunctionToolParam, objects.TOOL),
    (items.EasyInputMessageParam, objects.ITEM_MESSAGE),
    (items.ResponseOutputMessageParam, objects.ITEM_MESSAGE),
    (items.ResponseInputTextParam, objects.TEXT),
    (items.ResponseOutputTextParam, objects.TEXT),
    (items.ResponseFunctionToolCallParam, objects.FUNCTION_CALL),
    (items.ResponseCustomToolCallParam, objects.CUSTOM_CALL),
    (items.ResponseCustomToolCallOutputParam, objects.CALL_OUTPUT),
    (response_input_param.FunctionCallOutput, objects.CALL_OUTPUT),
    (items.ResponseReasoningItemParam, objects.REASONING),
    (items.FunctionToolParam, objects.FUNCTION_TOOL),
    (items.CustomToolParam, objects.CUSTOM_TOOL),
    (llama.Message, objects.OLLAMA_MESSAGE),
    (llama.Message.ToolCall, objects.CALL),
    (llama.Message.ToolCall.Function, objects.CALL_FUNCTION),
    (llama.Tool, objects.TOOL),
    (llama.Tool.Function, objects.TOOL_FUNCTION),
]


@pytest.mark.parametrize(("client", "known"), TYPES, ids=lambda each: getattr(each, "__name__", ""))
def test_all_that_a_client_may_send_is_known(client: Any, known: Object) -> None:
    for kind in get_args(client) or [client]:
        fields = getattr(kind, "model_fields", None) or kind.__annotations__
        assert set(fields) <= {*known.used, *known.idle, *known.refused}


def test_no_field_is_in_two_lists() -> None:
    for each in OBJECTS.values():
        names = [*each.used, *each.idle, *each.refused]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", OBJECTS)
def test_the_page_lists_the_fields_of_all_objects(name: str) -> None:
    each = OBJECTS[name]
    cells = [", ".join(sorted(names)) or "–" for names in (each.used, each.idle, each.refused)]
    expected = f"| {name} | {' | '.join(cells)} |"
    assert expected in (ROOT / "docs" / "serve.md").read_text(), f"docs/serve.md lacks this line:\n{expected}"


def test_all_objects_are_in_the_table() -> None:
    made = [each for each in vars(objects).values() if isinstance(each, Object)]
    assert {id(each) for each in made} == {id(each) for each in OBJECTS.values()}


@pytest.mark.parametrize("name", OBJECTS)
def test_each_field_is_used_noted_or_refused(name: str) -> None:
    kind = OBJECTS[name]
    for field in kind.used:
        assert taken("a[3]", {field: 1}, kind, []) == {field: 1}
    for field in kind.idle:
        idle: list[str] = []
        assert taken("a[3].b[0]", {field: 1}, kind, idle) == {}
        assert idle == [f"a.b.{field}"]
        assert taken("a[3].b[1]", {field: None}, kind, idle) == {}
    for field in (*kind.refused, "evil"):
        with pytest.raises(Refusal, match=field) as refused:
            taken("a[3].b[0]", {field: 1}, kind, [])
        assert (refused.value.param, refused.value.status) == ("a", 400)
        assert taken("a", {field: None}, kind, []) == {}


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ({"type": "text", "text": "Hi", "weight": 2}, "weight"),
        ({"type": "thinking", "text": "Hi"}, "thinking"),
        ({"type": "image_url", "image_url": {"url": "x"}}, "image_url"),
        ("Hi", "str"),
    ],
)
def test_parts_that_are_no_plain_text(part: Any, word: str) -> None:
    with pytest.raises(Refusal, match=word):
        plain_text("messages[0].content", [part], [])


def test_parts_of_text() -> None:
    made = [{"type": "text", "text": "a", **EPHEMERAL}, {"type": "output_text", "text": "b"}]
    idle: list[str] = []
    found = plain_text("messages[0].content", [*made, {"text": "c", "annotations": [], "weight": None}], idle)
    assert found == "a\nb\nc"
    assert idle == ["messages.content.cache_control", "messages.content.annotations"]
    with pytest.raises(Refusal, match="5, expected a text or parts"):
        plain_text("input[0].output", 5, [])


EVIL = {"evil": 1}
USE = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "c", "content": "x"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("role", "block"),
    [
        ("user", {"type": "text", "text": "x", **EVIL}),
        ("assistant", {"type": "thinking", "thinking": "x", **EVIL}),
        ("assistant", {"type": "redacted_thinking", "data": "x", **EVIL}),
        ("assistant", {**USE, **EVIL}),
        ("user", {**RESULT, **EVIL}),
        ("user", {**RESULT, "content": [{"type": "text", "text": "x", **EVIL}]}),
        ("user", {**RESULT, "content": 5}),
        ("user", {"type": "redacted_thinking", "data": "x"}),
    ],
)
def test_blocks_are_looked_through(role: str, block: Any) -> None:
    with pytest.raises(Refusal):
        anthropic.turns("messages[0]", {"role": role, "content": [block]}, [])


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "x", **EVIL},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", **EVIL},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": [1]},
        {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x", **EVIL},
        {"type": "function_call_output", "call_id": "c", "output": "x", **EVIL},
        {"type": "function_call_output", "call_id": "c", "output": 5},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x", **EVIL}]},
    ],
)
def test_items_are_looked_through(item: Any) -> None:
    with pytest.raises(Refusal):
        responses.messages([item], [])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "x", "function_call": {"name": "f"}},
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, **EVIL}]},
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "type": "custom"}]},
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {**CALL["function"], **EVIL}}]},  # type: ignore[dict-item]
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": [1]}}]},
        {"role": "user", "content": [{"type": "text", "text": "x", **EVIL}]},
    ],
)
def test_messages_are_looked_through(message: Any) -> None:
    with pytest.raises(Refusal):
        openai_chat.messages([message], [])


def test_a_summary_stands_for_reasoning_that_is_not_there() -> None:
    summary = [{"type": "summary_text", "text": "hm"}]
    (found,) = responses.messages([{"type": "reasoning", "summary": summary}], [])
    assert found["reasoning_content"] == "hm"


def test_the_log_says_what_was_without_effect(server: Running) -> None:
    """Inside messages too, in each API, and of small requests."""
    said = [{"type": "text", "text": "Hi", **EPHEMERAL}]
    messages: Any = [{"role": "user", "content": said}]
    form = {"type": "text", "name": "x"}
    one, marked = {"max_tokens": 1}, "messages.content.cache_control"
    item, text = [{**messages[0], "status": "x"}], {"format": form, "verbosity": "low"}
    quiet = {"thinking": {"type": "disabled", "display": "x"}, "system": said}
    asked: list[tuple[str, Any, list[str]]] = [
        ("/v1/chat/completions", {"messages": [{**messages[0], "id": "x"}], "reasoning_effort": "low", **one},
         ["messages.id", marked, "template.reasoning_effort"]),
        ("/v1/messages", {"messages": messages, **quiet, **one},
         ["thinking.display", "system.cache_control", marked, "template.enable_thinking"]),
        ("/v1/messages/count_tokens", {"messages": messages, "metadata": {}}, ["metadata", marked]),
        ("/v1/responses", {"input": item, "text": text, "max_output_tokens": 1},
         ["text.verbosity", "text.format.name", "input.status", "input.content.cache_control"]),
        ("/api/chat", {"messages": messages, "stream": False, "options": {"num_ctx": 9, "num_predict": 1}},
         ["options.num_ctx", marked]),
        ("/api/show", {"model": "demo", "verbose": True}, ["verbose"]),
        ("/tokenize", {"messages": messages}, [marked]),
    ]  # fmt: skip
    for path, body, idle in asked:
        assert server.post(path, body).status_code == 200, path
        assert server.idle()
        assert server.log[-1]["idle"] == idle, path
