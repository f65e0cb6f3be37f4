"""Small routes: what is served, tokens of texts, whether the server is well."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

import minillm
from minillm.serve import asked, fields, prompts
from minillm.serve.apis.openai import json
from minillm.serve.apis.openai_chat import messages, tools
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal
from minillm.serve.fields import Body
from minillm.serve.models import Card, Served
from minillm.serve.service import Service

METRICS = "text/plain; version=1.0.0; charset=utf-8"
MAX_TOKENS = 1_000_000  # of one list to be made a text of


class TokenizeBody(Body, kw_only=True):
    """A text, or a conversation with its tools."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False
    REFUSED: ClassVar = {"chat_template": "templates come with the model, or by --chat-template"}


class DetokenizeBody(Body, kw_only=True):
    """Ids."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(max_length=MAX_TOKENS)]


def _card(card: Card, name: str) -> dict[str, Any]:
    found = {"id": name, "object": "model", "created": card.created, "owned_by": "minillm"}
    return {**found, "root": card.name, "parent": card.parent, "max_model_len": card.room}


async def list_models(service: Service, request: Request) -> Response:
    return json({"object": "list", "data": [_card(each.card, name) for name, each in service.models.named.items()]})


async def show_model(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    return json(_card(service.models.find(name).card, name))


async def tokenize(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), TokenizeBody)
    if (body.prompt is None) == (body.messages is None):
        raise Refusal(400, "give prompt or messages, one of them", "invalid_value", "prompt")

    def ids(served: Served) -> list[int]:
        try:
            if body.prompt is not None:
                return prompts.text(served.llm, body.prompt, body.add_special_tokens)
            made = Asked(
                messages=messages(body.messages or [], idle),
                tools=tools(body.tools, idle),
                variables=asked.variables(body.chat_template_kwargs),
                prompted=body.add_generation_prompt,
                unfinished=body.continue_final_message,
                idle=idle,
            )
            return prompts.conversation(served.llm, made, service.settings.fold_system).ids
        except ValueError as error:
            raise Refusal(400, str(error).replace(str(served.llm.folder), served.name), "invalid_value") from None

    async with service.using(request, body.model, idle) as served:
        found = await service.beside(lambda: ids(served))
        names = [served.tokens.label(each) for each in found] if body.return_token_strs else None
        return json({"count": len(found), "max_model_len": served.room, "tokens": found, "token_strs": names})


async def detokenize(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), DetokenizeBody)
    async with service.using(request, body.model, idle) as served:
        tokenizer = served.llm.tokenizer
        if tokenizer is None:
            raise Refusal(400, "this model has no tokenizer", "invalid_value")
        if absent := next((each for each in body.tokens if each >= served.llm.spec.vocab_size), None):
            said = f"token id {absent} is outside the vocabulary of {served.llm.spec.vocab_size}"
            raise Refusal(400, said, "invalid_value", "tokens")
        return json({"prompt": await service.beside(lambda: tokenizer.decode(body.tokens, skip_special=False))})


async def health(service: Service, request: Request) -> Response:
    if not service.healthy():
        raise Refusal(503, "an engine has made no progress for too long", "stuck")
    return json({"status": "ok"})


async def ready(service: Service, request: Request) -> Response:
    service.open()
    return await health(service, request)


async def version(service: Service, request: Request) -> Response:
    return json({"version": minillm.__version__})


async def metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.text(), headers={"content-type": METRICS})


ROUTES = [
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{name:path}", show_model),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/health", health),
    ("GET", "/ready", ready),
    ("GET", "/version", version),
    ("GET", "/metrics", metrics),
]
