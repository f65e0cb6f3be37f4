"""LiteLLM: `litellm`, by its ways to OpenAI's, Anthropic's and Ollama's APIs."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks for a list of prices elsewhere

import litellm

from tests.serve.clients.asked import KEY, LONG, MANY, MODEL, NEW, QUESTION, STORY, Cat, Server, is_weather, raised

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Tokyo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 2}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": PARAMETERS}}


def ask(server: Server, said: Any, name: str = f"openai/{MODEL}", **how: Any) -> Any:
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
    base = server.base if name.startswith("openai") else server.url
    given = {"max_tokens": NEW, "num_retries": 0, "max_retries": 0, **how}
    return litellm.completion(model=name, api_base=base, api_key=KEY, messages=messages, **given)


def chat(server: Server) -> None:
    for name in (f"openai/{MODEL}", f"anthropic/{MODEL}", f"ollama_chat/{MODEL}"):
        assert ask(server, STORY, name).choices[0].message.content == server.story, name


def stream(server: Server) -> None:
    for name in (f"openai/{MODEL}", f"anthropic/{MODEL}", f"ollama_chat/{MODEL}"):
        parts = [part.choices[0].delta.content or "" for part in ask(server, STORY, name, stream=True)]
        assert "".join(parts) == server.story, name


def tools(server: Server) -> None:
    how = {"tools": [TOOL], "tool_choice": "required", "max_tokens": MANY}
    for name in (f"openai/{MODEL}", f"anthropic/{MODEL}"):
        message = ask(server, QUESTION, name, **how).choices[0].message
        for call in message.tool_calls:
            is_weather(json.loads(call.function.arguments))
        parts = [*ask(server, QUESTION, name, stream=True, **how)]
        whole = litellm.stream_chunk_builder(parts).choices[0].message  # type: ignore[union-attr]
        is_weather(json.loads(whole.tool_calls[0].function.arguments))
        back = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in message.tool_calls]
        said = [{"role": "user", "content": QUESTION}, message.model_dump(), *back]
        assert ask(server, said, name, tools=[TOOL], max_tokens=20).choices[0].message.content


def structured(server: Server) -> None:
    answer = ask(server, "Describe a cat", response_format=Cat, max_tokens=MANY)
    Cat.model_validate_json(answer.choices[0].message.content)


def errors(server: Server) -> None:
    raised(litellm.NotFoundError, lambda: ask(server, STORY, "openai/other"), 404)
    raised(litellm.ContextWindowExceededError, lambda: ask(server, LONG), 400)
