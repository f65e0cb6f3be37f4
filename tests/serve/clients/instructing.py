"""Instructor: `instructor`, which makes objects of answers."""

from __future__ import annotations

from typing import Any

import instructor
import openai

from tests.serve.clients.asked import KEY, LONG, MANY, MODEL, NEW, STORY, Cat, Server, raised

ASKED: Any = [{"role": "user", "content": "Describe a cat"}]


def client(server: Server, mode: Any = instructor.Mode.TOOLS) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=server.base, api_key=KEY, max_retries=0), mode=mode)


def made(server: Server, mode: Any) -> Any:
    create = client(server, mode).chat.completions.create
    return create(model=MODEL, messages=ASKED, response_model=Cat, max_tokens=MANY, max_retries=0)


def chat(server: Server) -> None:
    said: Any = [{"role": "user", "content": STORY}]
    answer = client(server).chat.completions.create(
        model=MODEL, messages=said, response_model=None, max_tokens=NEW, max_retries=0
    )
    assert answer.choices[0].message.content == server.story


def stream(server: Server) -> None:
    parts = client(server).chat.completions.create_partial(
        model=MODEL, messages=ASKED, response_model=Cat, max_tokens=MANY, max_retries=0
    )
    Cat.model_validate([*parts][-1].model_dump())


def tools(server: Server) -> None:
    assert isinstance(made(server, instructor.Mode.TOOLS), Cat)


def structured(server: Server) -> None:
    assert isinstance(made(server, instructor.Mode.JSON_SCHEMA), Cat)


def errors(server: Server) -> None:
    for name, said, kind, status in (
        ("other", "Hi", openai.NotFoundError, 404),
        (MODEL, LONG, openai.BadRequestError, 400),
    ):
        asked: Any = [{"role": "user", "content": said}]

        def ask(name: str = name, asked: Any = asked) -> Any:
            try:
                return client(server).chat.completions.create(
                    model=name, messages=asked, response_model=None, max_retries=0
                )
            except Exception as error:  # its own, around the client's
                raise error.__cause__ or error from None

        raised(kind, ask, status)
