"""LangChain by Anthropic's API: `langchain-anthropic`."""

from __future__ import annotations

from typing import Any

import anthropic
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage

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
    return ChatAnthropic(base_url=server.url, api_key=KEY, model=name, max_retries=0, **given)  # type: ignore[arg-type]


def chat(server: Server) -> None:
    assert model(server).invoke(STORY).content == server.story


def stream(server: Server) -> None:
    assert "".join(part.text for part in model(server).stream(STORY)) == server.story


def tools(server: Server) -> None:
    ready = model(server, max_tokens=MANY).bind_tools(
        [weather], tool_choice="any", strict=True, parallel_tool_calls=False
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
        assert isinstance(ready.invoke("Describe a cat"), Cat), method


def errors(server: Server) -> None:
    raised(anthropic.NotFoundError, lambda: model(server, "other").invoke(STORY), 404)
    raised(anthropic.BadRequestError, lambda: model(server).invoke(LONG), 400)
