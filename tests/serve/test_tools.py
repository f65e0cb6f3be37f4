"""Calls of tools and reasoning through each API, streamed and not: what a model writes is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from anthropic import Anthropic
from ollama import Client
from openai import OpenAI

from tests.helpers.server import Running

Start = Callable[..., Running]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": SCHEMA}}
ARGUMENTS = {"city": 'Zürich "Nord"', "days": 3}
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {json.dumps(ARGUMENTS)}}}\n</tool_call>'
ANSWER = f"<think>\nIt asks for the weather.\n</think>\n\nLet me look.\n{CALL}\n{CALL}"
ASKED: Any = [{"role": "user", "content": "How is the weather?"}]


def openai_client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("stream", [False, True])
def test_openai_chat(scripted: Start, stream: bool) -> None:
    client = openai_client(scripted(ANSWER))
    asked: Any = {"model": "demo", "messages": ASKED, "tools": [TOOL]}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            made = events.get_final_completion()
    else:
        made = client.chat.completions.create(**asked)
    message = made.choices[0].message
    assert made.choices[0].finish_reason == "tool_calls"
    assert (message.content or "").strip() == "Let me look."
    assert [call.function.name for call in message.tool_calls or []] == ["weather", "weather"]  # type: ignore[union-attr]
    assert [json.loads(call.function.arguments) for call in message.tool_calls or []] == [ARGUMENTS] * 2  # type: ignore[union-attr]
    assert len({call.id for call in message.tool_calls or []}) == 2
    extra = message.model_extra or {}
    assert extra["reasoning_content"] == extra["reasoning"] == "It asks for the weather."
    assert made.usage is None or made.usage.completion_tokens_details.reasoning_tokens > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_messages(scripted: Start, stream: bool) -> None:
    client = Anthropic(base_url=scripted(ANSWER).url, api_key="none", max_retries=0)
    tool: Any = {"name": "weather", "description": "of a city", "input_schema": SCHEMA}
    asked: Any = {"model": "demo", "messages": ASKED, "tools": [tool], "max_tokens": 300}
    if stream:
        with client.messages.stream(**asked) as events:
            made: Any = events.get_final_message()
    else:
        made = client.messages.create(**asked)
    assert made.stop_reason == "tool_use"
    assert [block.type for block in made.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert made.content[0].thinking == "It asks for the weather."
    assert made.content[1].text.strip() == "Let me look."
    assert [block.input for block in made.content[2:]] == [ARGUMENTS] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_openai_responses(scripted: Start, stream: bool) -> None:
    client = openai_client(scripted(ANSWER))
    tools: Any = [
        {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False},
        {"type": "web_search"},
    ]
    asked: Any = {"model": "demo", "input": "How is the weather?", "tools": tools}
    if stream:
        with client.responses.stream(**asked) as events:
            kinds = [event.type for event in events]
            made: Any = events.get_final_response()
        assert kinds.count("response.function_call_arguments.done") == 2
    else:
        made = client.responses.create(**asked)
    assert made.status == "completed"
    assert [item.type for item in made.output] == ["reasoning", "message", "function_call", "function_call"]
    assert made.output_text.strip() == "Let me look."
    assert [json.loads(item.arguments) for item in made.output[2:]] == [ARGUMENTS] * 2


def test_a_tool_that_takes_any_text(scripted: Start) -> None:
    """Codex's apply_patch: a function for the model, and a text again for the client."""
    patch = '<tool_call>{"name": "apply_patch", "arguments": {"input": "*** Begin\\n+x"}}</tool_call>'
    client = openai_client(scripted(patch, patch))
    asked: Any = {
        "model": "demo",
        "input": [{"role": "user", "content": "Patch"}],
        "tools": [{"type": "custom", "name": "apply_patch"}],
    }
    made: Any = client.responses.create(**asked)
    assert (made.output[0].type, made.output[0].input) == ("custom_tool_call", "*** Begin\n+x")
    with client.responses.stream(**asked) as events:
        for _ in events:
            pass
        assert events.get_final_response().output[0].input == "*** Begin\n+x"  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_chat(scripted: Start, stream: bool) -> None:
    client = Client(host=scripted(ANSWER).url)
    found: Any = client.chat("demo", messages=ASKED, tools=[TOOL], stream=stream)
    parts = [*found] if stream else [found]
    assert "".join(part.message.content or "" for part in parts).strip() == "Let me look."
    assert "".join(part.message.thinking or "" for part in parts) == "It asks for the weather."
    calls = [call for part in parts for call in part.message.tool_calls or []]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", ARGUMENTS)] * 2
    assert parts[-1].done
    assert parts[-1].done_reason == "stop"


def test_what_is_no_call_of_a_known_tool_is_text(scripted: Start) -> None:
    other = CALL.replace("weather", "other")
    server = scripted(other, "Look: <tool_call>{oops</tool_call>", CALL)
    client = openai_client(server)
    for expected in (other, "Look: <tool_call>{oops</tool_call>"):
        made = client.chat.completions.create(model="demo", messages=ASKED, tools=[TOOL]).choices[0]
        assert (made.finish_reason, made.message.tool_calls) == ("stop", None)
        assert (made.message.content or "").split() == expected.split()
    made = client.chat.completions.create(model="demo", messages=ASKED, tools=[TOOL], tool_choice="none").choices[0]
    assert made.message.tool_calls is None


def test_a_call_that_is_cut_is_no_call(scripted: Start) -> None:
    server = scripted(CALL, CALL)
    made = openai_client(server).chat.completions.create(model="demo", messages=ASKED, tools=[TOOL], max_tokens=12)
    assert made.choices[0].finish_reason == "length"
    parts = [
        *Client(host=server.url).chat("demo", messages=ASKED, tools=[TOOL], options={"num_predict": 12}, stream=True)
    ]
    assert parts[-1].done_reason == "length"
    assert not any(part.message.tool_calls for part in parts)


def test_the_prompt_says_whether_the_answer_begins_in_reasoning(scripted: Start) -> None:
    server = scripted("so it is.</think>Yes.")
    more = {"chat_template_kwargs": {"enable_thinking": True}}
    made = openai_client(server).chat.completions.create(model="demo", messages=ASKED, extra_body=more)
    assert made.choices[0].message.content == "Yes."
    assert made.choices[0].message.model_extra["reasoning"] == "so it is."  # type: ignore[index]


def test_a_conversation_with_calls_goes_back_in(scripted: Start) -> None:
    """What each API's client sends next reaches the template in one form."""
    server = scripted("a", "a", "a", "a")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
    openai_client(server).chat.completions.create(
        model="demo",
        tools=[TOOL],
        messages=[*ASKED, {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
                  {"role": "tool", "tool_call_id": "c1", "content": "rain"}],
    )  # fmt: skip
    use: Any = {"type": "tool_use", "id": "c1", "name": "weather", "input": ARGUMENTS}
    result: Any = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]}
    tool: Any = {"name": "weather", "description": "of a city", "input_schema": SCHEMA}
    Anthropic(base_url=server.url, api_key="none").messages.create(
        model="demo", max_tokens=9, tools=[tool],
        messages=[*ASKED, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}],
    )  # fmt: skip
    items: Any = [
        *ASKED,
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": json.dumps(ARGUMENTS)},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    function: Any = {"type": "function", **TOOL["function"]}
    openai_client(server).responses.create(model="demo", input=items, tools=[function])
    said = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": ARGUMENTS}}],
    }
    back = {"role": "tool", "content": "rain", "tool_name": "weather"}
    Client(host=server.url).chat("demo", messages=[*ASKED, said, back], tools=[TOOL])
    rows = server.service.models.loaded[0].engine.rows  # type: ignore[attr-defined]
    assert len(rows) == 4
    assert {tuple(row.prompt) for row in rows} == {tuple(rows[0].prompt)}


def test_a_result_and_a_text_in_one_turn(scripted: Start) -> None:
    """The result stands first, as a message of its own."""
    server = scripted("a")
    blocks: Any = [
        {"type": "text", "text": "and tomorrow?"},
        {"type": "tool_result", "tool_use_id": "c", "content": "rain", "is_error": True},
    ]
    Anthropic(base_url=server.url, api_key="none").messages.create(
        model="demo",
        max_tokens=9,
        messages=[*ASKED, {"role": "assistant", "content": "hm"}, {"role": "user", "content": blocks}],
    )
    (row,) = server.service.models.loaded[0].engine.rows  # type: ignore[attr-defined]
    text = server.service.models.loaded[0].llm.tokenizer.decode(row.prompt)  # type: ignore[union-attr]
    assert text.index("Error: rain") < text.index("and tomorrow?")


def test_tools_need_a_template_that_knows_them(server: Running) -> None:
    found = server.post("/v1/chat/completions", {"messages": ASKED, "tools": [TOOL]})
    assert (found.status_code, found.json()["error"]["param"]) == (400, "tools")
    assert server.post("/v1/chat/completions", {"messages": ASKED, "tools": [], "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tool_choice": "sometimes"},
        {"tools": [TOOL, TOOL]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]},
        {"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]},
        {"tools": [], "tool_choice": "required"},
    ],
)
def test_tools_that_cannot_be(tools_server: Running, change: dict[str, Any]) -> None:
    found = tools_server.post("/v1/chat/completions", {"messages": ASKED, "tools": [TOOL], **change})
    assert found.status_code == 400
    assert found.json()["error"]["type"] == "invalid_request_error"
