"""JSON by a schema and calls that must come: the demo model, which knows of neither, writes what grammars allow."""

from __future__ import annotations

import json
from typing import Any, Literal

import pydantic
import pytest
from anthropic import Anthropic
from ollama import Client
from openai import OpenAI

from tests.helpers.server import Running

ASKED: Any = [{"role": "user", "content": "Describe a cat"}]


class Cat(pydantic.BaseModel, extra="forbid"):
    """What an answer has to be; bounded, as a small model does not know where to stop."""

    colour: Literal["black", "white", "red"]
    lives: int = pydantic.Field(ge=1, le=9)
    friends: list[Literal["dog", "mouse"]] = pydantic.Field(max_length=2)


SCHEMA = Cat.model_json_schema()
TOOL: Any = {"type": "function", "function": {"name": "keep", "description": "a cat", "parameters": SCHEMA}}
OTHER: Any = {"type": "function", "function": {"name": "feed", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def client(tools_server: Running) -> OpenAI:
    return OpenAI(base_url=f"{tools_server.url}/v1", api_key="none", max_retries=0)


def test_a_chat_is_parsed(client: OpenAI) -> None:
    made = client.chat.completions.parse(model="demo", messages=ASKED, response_format=Cat, temperature=1, seed=3)
    assert isinstance(made.choices[0].message.parsed, Cat)
    assert made.choices[0].finish_reason == "stop"


def test_an_object_is_json(client: OpenAI) -> None:
    form: Any = {"type": "json_object"}
    made = client.chat.completions.create(model="demo", messages=ASKED, response_format=form, max_tokens=200)
    text = made.choices[0].message.content or ""
    assert text.startswith("{")
    if made.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_response_is_parsed(client: OpenAI) -> None:
    assert isinstance(client.responses.parse(model="demo", input=ASKED, text_format=Cat).output_parsed, Cat)


def test_a_message_by_a_schema(tools_server: Running) -> None:
    more = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    claude = Anthropic(base_url=tools_server.url, api_key="none", max_retries=0)
    made: Any = claude.messages.create(model="demo", max_tokens=200, messages=ASKED, extra_body=more)
    Cat.model_validate_json(made.content[0].text)


def test_ollama_by_a_schema(tools_server: Running) -> None:
    made = Client(host=tools_server.url).chat("demo", messages=ASKED, format=SCHEMA)
    Cat.model_validate_json(made.message.content or "")


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_come(client: OpenAI, stream: bool) -> None:
    """As pydantic-ai asks for structured output."""
    asked: Any = {"model": "demo", "messages": ASKED, "tools": [TOOL, OTHER], "tool_choice": "required"}
    asked |= {"parallel_tool_calls": False, "temperature": 1, "seed": 5}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            made: Any = events.get_final_completion()
    else:
        made = client.chat.completions.create(**asked)
    (call,) = made.choices[0].message.tool_calls
    assert call.function.name in ("keep", "feed")
    Cat.model_validate_json(call.function.arguments)
    assert made.choices[0].finish_reason == "tool_calls"
    assert not made.choices[0].message.content


def test_a_call_by_its_name(client: OpenAI, tools_server: Running) -> None:
    """As instructor does, and Anthropic's own form of it."""
    named: Any = {"type": "function", "function": {"name": "feed"}}
    made: Any = client.chat.completions.create(model="demo", messages=ASKED, tools=[TOOL, OTHER], tool_choice=named)
    (call,) = made.choices[0].message.tool_calls
    assert call.function.name == "feed"
    claude = Anthropic(base_url=tools_server.url, api_key="none", max_retries=0)
    tools: Any = [{"name": name, "input_schema": SCHEMA} for name in ("keep", "feed")]
    found: Any = claude.messages.create(
        model="demo", max_tokens=200, messages=ASKED, tools=tools, tool_choice={"type": "tool", "name": "feed"}
    )
    assert (found.stop_reason, found.content[-1].name) == ("tool_use", "feed")
    Cat.model_validate(found.content[-1].input)


def test_a_neighbour_with_a_grammar_changes_nothing(client: OpenAI) -> None:
    """vllm-mlx#784: a request without one breaks the next that has one, and the other way round."""
    from concurrent.futures import ThreadPoolExecutor

    def free(n: int) -> str | None:
        return client.chat.completions.create(model="demo", messages=ASKED, max_tokens=30).choices[0].message.content

    def strict(n: int) -> str | None:
        made = client.chat.completions.parse(model="demo", messages=ASKED, response_format=Cat, temperature=1, seed=n)
        assert made.choices[0].message.parsed is not None
        return made.choices[0].message.content

    alone = [free(0), *(strict(n) for n in range(4))]
    with ThreadPoolExecutor(8) as pool:
        together = [pool.submit(free, 0), *(pool.submit(strict, n) for n in range(4)), pool.submit(free, 0)]
    assert [each.result() for each in together] == [*alone, alone[0]]


def test_keywords_that_cannot_be_kept_are_named(client: OpenAI, tools_server: Running) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = tools_server.post("/v1/chat/completions", {"messages": ASKED, "response_format": form})
    assert found.status_code == 400
    assert "uniqueItems" in found.json()["error"]["message"]
