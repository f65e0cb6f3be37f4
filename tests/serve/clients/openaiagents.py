"""OpenAI Agents: `openai-agents`, which asks by /v1/responses."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from agents.models.openai_responses import OpenAIResponsesModel

from tests.serve.clients.asked import KEY, LONG, MANY, MODEL, NEW, QUESTION, STORY, Cat, Server, is_weather, raised

set_tracing_disabled(True)


def agent(server: Server, name: str = MODEL, most: int = NEW, choice: str | None = None, **how: Any) -> Any:
    client = openai.AsyncOpenAI(base_url=server.base, api_key=KEY, max_retries=0)
    settings = ModelSettings(max_tokens=most, tool_choice=choice)
    return Agent(name="a", model=OpenAIResponsesModel(name, client), model_settings=settings, **how)


def chat(server: Server) -> None:
    assert Runner.run_sync(agent(server), STORY).final_output == server.story


def stream(server: Server) -> None:
    async def streamed() -> str:
        answer = Runner.run_streamed(agent(server), STORY)
        events = [each.data async for each in answer.stream_events() if each.type == "raw_response_event"]
        return "".join(each.delta for each in events if each.type == "response.output_text.delta")

    assert asyncio.run(streamed()) == server.story


def tools(server: Server) -> None:
    """It is called, its result goes back, and the answer that follows is the end."""
    called: list[dict[str, Any]] = []

    def noted(city: Literal["Paris", "Tokyo"], days: Literal[1, 2]) -> str:
        called.append({"city": city, "days": days})
        return "rain"

    tool = function_tool(noted, name_override="weather")
    found = Runner.run_sync(agent(server, choice="required", tools=[tool]), QUESTION)
    is_weather(called[0])
    assert found.final_output


def structured(server: Server) -> None:
    found = Runner.run_sync(agent(server, most=MANY, output_type=Cat), "Describe a cat")
    assert isinstance(found.final_output, Cat)


def errors(server: Server) -> None:
    raised(openai.NotFoundError, lambda: Runner.run_sync(agent(server, "other"), STORY), 404)
    raised(openai.BadRequestError, lambda: Runner.run_sync(agent(server), LONG), 400)
