"""LangChain by Ollama's API: `langchain-ollama`. That API cannot force a call, so tools are only sent."""

from __future__ import annotations

from typing import Any

import ollama
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_ollama import ChatOllama

from tests.serve.clients.asked import LONG, MANY, MODEL, NEW, QUESTION, STORY, Cat, Server, raised, weather


def model(server: Server, name: str = MODEL, **how: Any) -> Any:
    return ChatOllama(base_url=server.url, model=name, **{"num_predict": NEW, **how})


def chat(server: Server) -> None:
    assert model(server, validate_model_on_init=True).invoke(STORY).content == server.story


def stream(server: Server) -> None:
    assert "".join(part.text for part in model(server).stream(STORY)) == server.story


def tools(server: Server) -> None:
    ready = model(server, num_predict=20).bind_tools([weather])
    assert ready.invoke(QUESTION).content
    call = {"name": "weather", "args": {"city": "Paris", "days": 1}, "id": "1", "type": "tool_call"}
    said = [
        HumanMessage(QUESTION),
        AIMessage("", tool_calls=[call]),
        ToolMessage(weather("Paris", 1), tool_call_id="1"),
    ]
    assert ready.invoke(said).content


def structured(server: Server) -> None:
    ready = model(server, num_predict=MANY).with_structured_output(Cat, method="json_schema")
    assert isinstance(ready.invoke("Describe a cat"), Cat)


def errors(server: Server) -> None:
    raised(ollama.ResponseError, lambda: model(server, "other").invoke(STORY), 404)
    raised(ollama.ResponseError, lambda: model(server).invoke(LONG), 400)
