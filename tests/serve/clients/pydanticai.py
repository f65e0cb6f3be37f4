"""Pydantic AI: `pydantic-ai-slim[openai]`."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.serve.clients.asked import KEY, LONG, MANY, MODEL, NEW, QUESTION, STORY, Cat, Server, raised, weather


def agent(server: Server, name: str = MODEL, most: int = NEW, **how: Any) -> Any:
    provider = OpenAIProvider(base_url=server.base, api_key=KEY)
    return Agent(OpenAIChatModel(name, provider=provider), model_settings={"max_tokens": most}, **how)


def chat(server: Server) -> None:
    assert agent(server).run_sync(STORY).output == server.story


def stream(server: Server) -> None:
    async def streamed() -> str:
        async with agent(server).run_stream(STORY) as answer:
            return "".join([part async for part in answer.stream_text(delta=True)])

    assert asyncio.run(streamed()) == server.story


def tools(server: Server) -> None:
    """A function that the answer has to call."""
    assert "will have rain" in agent(server, most=MANY, output_type=weather).run_sync(QUESTION).output


def structured(server: Server) -> None:
    for wanted in (Cat, NativeOutput(Cat)):
        assert isinstance(agent(server, most=MANY, output_type=wanted).run_sync("Describe a cat").output, Cat)


def errors(server: Server) -> None:
    raised(ModelHTTPError, lambda: agent(server, "other").run_sync(STORY), 404)
    raised(ModelHTTPError, lambda: agent(server).run_sync(LONG), 400)
