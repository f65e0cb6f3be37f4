"""LlamaIndex: `llama-index-llms-openai-like`."""

from __future__ import annotations

from typing import Any

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

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
    Weather,
    is_weather,
    raised,
    weather,
)


def model(server: Server, name: str = MODEL, most: int = NEW) -> Any:
    return OpenAILike(
        model=name, api_base=server.base, api_key=KEY, is_chat_model=True, is_function_calling_model=True,
        max_tokens=most, max_retries=0, context_window=512, temperature=0,
    )  # fmt: skip


def chat(server: Server) -> None:
    assert model(server).chat([ChatMessage(role="user", content=STORY)]).message.content == server.story


def stream(server: Server) -> None:
    parts = [*model(server).stream_chat([ChatMessage(role="user", content=STORY)])]
    assert "".join(part.delta or "" for part in parts) == parts[-1].message.content == server.story


def tools(server: Server) -> None:
    ready = model(server, most=MANY)
    tool = FunctionTool.from_defaults(weather, name="weather", fn_schema=Weather)
    answer = ready.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    (call,) = ready.get_tool_calls_from_response(answer)
    is_weather(call.tool_kwargs)
    last = [*ready.stream_chat_with_tools([tool], user_msg=QUESTION, tool_required=True)][-1]
    is_weather(ready.get_tool_calls_from_response(last)[0].tool_kwargs)
    result = ChatMessage(role="tool", content="rain", additional_kwargs={"tool_call_id": call.tool_id})
    assert model(server).chat([ChatMessage(role="user", content=QUESTION), answer.message, result]).message.content


def structured(server: Server) -> None:
    prompt = PromptTemplate("Describe a cat")
    assert isinstance(model(server, most=MANY).structured_predict(Cat, prompt), Cat)


def errors(server: Server) -> None:
    said = [ChatMessage(role="user", content=STORY)]
    raised(openai.NotFoundError, lambda: model(server, "other").chat(said), 404)
    said = [ChatMessage(role="user", content=LONG)]
    raised(openai.BadRequestError, lambda: model(server).chat(said), 400)
