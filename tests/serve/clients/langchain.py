"""LangChain: `langchain-openai`."""

from __future__ import annotations

from typing import Any

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from tests.serve.clients.asked import (
    KEY,
    LONG,
    MANY,
    MODEL,
    NEW,
    QUESTION,
    STORY,
    Cat,
    Server,
    is_weather,
    raised,
    weather,
)


def model(server: Server, name: str = MODEL, **how: Any) -> Any:
    given = {"max_tokens": NEW, **how}
    return ChatOpenAI(base_url=server.base, api_key=KEY, model=name, max_retries=0, **given)  # type: ignore[arg-type]


def chat(server: Server) -> None:
    assert model(server).invoke(STORY).content == server.story
    assert model(server, use_responses_api=True).invoke(STORY).text == server.story


def stream(server: Server) -> None:
    assert "".join(str(part.content) for part in model(server).stream(STORY)) == server.story


def tools(server: Server) -> None:
    ready = model(server, max_tokens=MANY).bind_tools(
        [weather], tool_choice="required", strict=True, parallel_tool_calls=False
    )
    answer = ready.invoke(QUESTION)
    (call,) = answer.tool_calls
    is_weather(call["args"])
    whole: Any = None
    for part in ready.stream(QUESTION):
        whole = part if whole is None else whole + part
    is_weather(whole.tool_calls[0]["args"])
    result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    assert model(server).invoke([HumanMessage(QUESTION), answer, result]).content


def structured(server: Server) -> None:
    for method in ("json_schema", "function_calling"):
        ready = model(server, max_tokens=MANY).with_structured_output(Cat, method=method)
        assert isinstance(ready.invoke("Describe a cat"), Cat)


def errors(server: Server) -> None:
    raised(openai.NotFoundError, lambda: model(server, "other").invoke(STORY), 404)
    raised(openai.BadRequestError, lambda: model(server).invoke(LONG), 400)
