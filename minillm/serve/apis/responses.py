"""POST /v1/responses: OpenAI's newer API, stateless: a conversation comes whole with each request. What it streams is
in `responses_events.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from minillm.guard.screen import shown
from minillm.serve import asked, fields, settings
from minillm.serve.answering import Job
from minillm.serve.apis import objects, openai
from minillm.serve.apis.objects import plain_text, taken
from minillm.serve.apis.responses_events import Output, chunks, ended, new_id, usage
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal
from minillm.serve.fields import Body
from minillm.serve.service import Service, whole
from minillm.serve.streaming import SSE, Stream

STATELESS = "this server keeps no conversations; send the whole one as input"
ROLES = ("system", "developer", "user", "assistant")
# The one argument of a tool that takes any text.
FREE_TEXT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


class Format(msgspec.Struct, forbid_unknown_fields=True):
    """The form of the text."""

    IDLE: ClassVar = dict.fromkeys(("name", "description", "strict"), "a schema is kept to, whatever it is called")
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class Text(msgspec.Struct, forbid_unknown_fields=True):
    """What kind of text is wanted."""

    IDLE: ClassVar = {"verbosity": "no template knows it"}
    format: Format | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, forbid_unknown_fields=True):
    """How much the model is to reason."""

    IDLE: ClassVar = dict.fromkeys(("summary", "generate_summary", "context"), "all reasoning is given out as it is")
    effort: asked.Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None


class ResponsesBody(Body, kw_only=True):
    """The fields of a response."""

    IDLE: ClassVar = {
        **openai.BOOKKEEPING,
        "include": "reasoning is given out as it is, and nothing else of what can be included is here",
        "truncation": "an input that is too long is refused, never cut",
        "client_metadata": "bookkeeping of clients",
        "stream_options": "nothing is obfuscated, and usage always comes",
        "max_tool_calls": "this server runs no tools of its own",
        "context_management": "nothing is left out of a conversation",
    }
    REFUSED: ClassVar = {
        "previous_response_id": STATELESS,
        "conversation": STATELESS,
        "background": "an answer is waited for",
        "prompt": "this server keeps no prompts",
        "moderation": "this server has none",
    }
    model: str | None = None
    input: str | list[Any] = ""
    instructions: str | None = None
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: asked.Temperature | None = None
    top_p: asked.Share | None = None
    top_k: asked.TopK | None = None
    min_p: asked.Share | None = None
    seed: asked.Seed | None = None
    frequency_penalty: asked.Penalty | None = None
    presence_penalty: asked.Penalty | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=settings.MAX_LOGPROBS)] | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    stream: bool = False


async def create(service: Service, request: Request) -> Response:
    given = await service.parsed(request)
    body, idle = fields.read(given, ResponsesBody)
    wanted = of(body, idle)
    job = await service.start(request, wanted)
    custom = frozenset(str(each.get("name")) for each in body.tools if each.get("type") == "custom")
    head = _head(job, body, given)
    output = Output(custom, job.served.tokens, body.top_logprobs)
    if body.stream:
        return Stream(job, chunks(job, head, output), output.broken, SSE, service.settings.write_timeout)
    (answer,) = await whole(request, job)
    return openai.json({**head, **ended(job), "output": output.of(answer), "usage": usage(job)})


def of(body: ResponsesBody, idle: list[str]) -> Asked:
    """The request as the server knows it. Raises Refusal."""
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty")
    options = asked.sampling(**{name: getattr(body, name) for name in names})
    if body.top_logprobs is not None:
        options["logprobs"] = body.top_logprobs
    said = [{"role": "system", "content": body.instructions}] if body.instructions else []
    made = Asked(
        model=body.model,
        messages=first_system([*said, *messages(body.input, idle)]),
        tools=tools(body.tools, idle),
        parallel=body.parallel_tool_calls,
        options=options,
        most=body.max_output_tokens,
        clamp=True,
        stream=body.stream,
        idle=idle,
    )
    if body.reasoning:
        asked.effort(made, body.reasoning.effort)
    asked.choose(made, *choice(body.tool_choice))
    if body.text and body.text.format and body.text.format.type != "text":
        kind, schema = body.text.format.type, body.text.format.schema
        if kind == "json_schema" and schema is None:
            raise Refusal(400, "text.format: json_schema needs a schema", "invalid_value", "text")
        made.response_format = asked.form(schema, "text.format") if schema is not None else {"type": kind}
    return made


def first_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the system and the developer say as one message in front: clients put it anywhere, templates take it there.
    An input of nothing is a user who says nothing."""
    said = [each["content"] for each in messages if each["role"] in ("system", "developer")]
    rest = [each for each in messages if each["role"] not in ("system", "developer")]
    first = [{"role": "system", "content": "\n\n".join(said)}] if said else []
    return [*first, *(rest or [{"role": "user", "content": ""}])]


def messages(given: str | list[Any], idle: list[str]) -> list[dict[str, Any]]:
    """The items of an input as messages; reasoning and calls belong to the assistant's that they stand beside. Raises
    Refusal that names the item."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}] if given else []
    if len(given) > settings.MAX_MESSAGES:
        raise Refusal(400, f"input has {len(given):,} items, at most {settings.MAX_MESSAGES:,} are allowed")
    made: list[dict[str, Any]] = []
    for at, item in enumerate(given):
        if not isinstance(item, dict):
            raise Refusal(400, f"input[{at}] is {shown(item)}, expected an item", "invalid_value", "input")
        message = _message(f"input[{at}]", item, idle)
        before = made[-1] if made else {}
        if message["role"] == before.get("role") == "assistant" and not (before["content"] and message["content"]):
            before["content"] += message["content"]
            before["tool_calls"] = [*before.get("tool_calls", []), *message.get("tool_calls", [])]
            if thought := message.get("reasoning_content"):
                before["reasoning_content"] = before.get("reasoning_content", "") + thought
        else:
            made.append(message)
    return made


def _message(at: str, item: dict[str, Any], idle: list[str]) -> dict[str, Any]:
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "message" and item.get("role") in ROLES:
        found = taken(at, item, objects.ITEM_MESSAGE, idle)
        seen = objects.ITEM_PARTS if found["role"] == "user" else ()
        return {"role": found["role"], "content": objects.content(f"{at}.content", found.get("content"), idle, seen)}
    if kind in ("function_call", "custom_tool_call") and isinstance(item.get("name"), str):
        return {"role": "assistant", "content": "", "tool_calls": [_call(at, item, idle)]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        found = taken(at, item, objects.CALL_OUTPUT, idle)
        said = plain_text(f"{at}.output", found.get("output"), idle)
        return {"role": "tool", "tool_call_id": str(found.get("call_id") or ""), "content": said}
    if kind == "reasoning":
        found = taken(at, item, objects.REASONING, idle)
        thought = plain_text(f"{at}.content", found.get("content") or found.get("summary"), idle)
        return {"role": "assistant", "content": "", "reasoning_content": thought}
    raise Refusal(
        400, f"{at}: an item of type {shown(kind)} is not supported, or lacks a name", "invalid_value", "input"
    )


def _call(at: str, item: dict[str, Any], idle: list[str]) -> dict[str, Any]:
    """A call as templates take it: what is a free text for the client is an argument for the model."""
    if item["type"] == "function_call":
        found = taken(at, item, objects.FUNCTION_CALL, idle)
        arguments = found.get("arguments", "")
    else:
        found = taken(at, item, objects.CUSTOM_CALL, idle)
        arguments = msgspec.json.encode({"input": found.get("input", "")}).decode()
    if not isinstance(arguments, str):
        raise Refusal(400, f"{at}: the arguments are {shown(arguments)}, expected a text", "invalid_value", "input")
    function = {"name": found["name"], "arguments": arguments}
    return {"id": str(found.get("call_id") or ""), "type": "function", "function": function}


def tools(given: list[dict[str, Any]], idle: list[str]) -> list[dict[str, Any]]:
    """Functions, and tools that take any text as functions of one argument. Others, which OpenAI's own service runs,
    are left out and said to be. Raises Refusal."""
    made = []
    for at, each in enumerate(given):
        kind = each.get("type")
        if kind == "function":
            found = taken(f"tools[{at}]", each, objects.FUNCTION_TOOL, idle)
            made.append(asked.tool(f"tools[{at}]", found, found.get("parameters")))
        elif kind == "custom":
            made.append(asked.tool(f"tools[{at}]", taken(f"tools[{at}]", each, objects.CUSTOM_TOOL, idle), FREE_TEXT))
        else:
            objects.note("tools", str(kind), idle)
    return asked.tools(made)


def choice(given: Any) -> tuple[str, str | None]:
    if given is None or given in ("none", "auto", "required"):
        return given or "auto", None
    if isinstance(given, dict) and given.get("type") in ("function", "custom"):
        return "named", taken("tool_choice", given, objects.ITEM_CHOICE, []).get("name")
    said = f"tool_choice is {shown(given)}, expected none, auto, required or a function"
    raise Refusal(400, said, "invalid_value", "tool_choice")


def _head(job: Job, body: ResponsesBody, given: dict[str, Any]) -> dict[str, Any]:
    """What a response says of the request, before it has any output."""
    text = {"format": {"type": "text"}, **(given.get("text") or {})}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": job.made,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": job.served.name,
        "output": [],
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "text": text,
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "metadata": given.get("metadata") or {},
        "usage": None,
    }


ROUTES = [("POST", "/v1/responses", create)]
