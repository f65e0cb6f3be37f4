"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API. What it streams is in `anthropic_events.py`."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from minillm.guard.screen import shown
from minillm.serve import asked, fields, prompts, settings
from minillm.serve.answering import Answer, Choice, Job
from minillm.serve.apis import objects
from minillm.serve.apis.anthropic_events import broken, chunks
from minillm.serve.apis.objects import plain_text, taken
from minillm.serve.apis.openai import json
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal
from minillm.serve.fields import Body
from minillm.serve.models import Served
from minillm.serve.service import Service, whole
from minillm.serve.streaming import SSE, Stream

# A block of the system's text that changes with every request, and would let no prompt begin as the last did.
NONCE = "x-anthropic-billing-header:"
MAX_STOPS = 100
ROLES = ("user", "assistant", "system")


class Thinking(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the model is to reason."""

    IDLE: ClassVar = {
        "budget_tokens": "max_tokens bounds reasoning and answer together",
        "display": "reasoning is always given out",
    }
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1024)] | None = None
    display: str | None = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """Which tools are to be called."""

    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool = False


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The form of an answer, and how much the model is to reason."""

    format: dict[str, Any] | None = None
    effort: asked.Effort | None = None


class CountBody(Body, kw_only=True):
    """The fields that a prompt is made of."""

    IDLE: ClassVar = {
        "metadata": "bookkeeping of Anthropic's own service",
        "service_tier": "bookkeeping of Anthropic's own service",
        "cache_control": "what prompts share is found without marks",
        "context_management": "nothing is left out of a conversation",
        "betas": "these are on, or refused by their fields",
        "inference_geo": "there is one server",
        "speed": "there is one speed",
    }
    REFUSED: ClassVar = {"mcp_servers": "this server calls no others", "container": "this server runs no code"}
    model: str | None = None
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountBody, kw_only=True):
    """The fields of a message that is asked for."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: asked.Share | None = None
    top_k: asked.TopK | None = None
    stream: bool = False


async def create(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), MessagesBody)
    wanted = of(body, idle)
    wanted.most, wanted.clamp, wanted.stream = body.max_tokens, True, body.stream
    wanted.options = asked.sampling(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k)
    if stops := asked.stops(body.stop_sequences, MAX_STOPS):
        wanted.options["stop"] = stops
    job = await service.start(request, wanted)
    head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": job.served.name}
    if body.stream:
        return Stream(job, chunks(job, head, ended, usage), broken, SSE, service.settings.write_timeout)
    (answer,) = await whole(request, job)
    return json({**head, "content": content(answer), **ended(job.choices[0]), "usage": usage(job)})


async def count_tokens(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), CountBody)
    wanted = of(body, idle)

    def count(served: Served) -> int:
        try:
            return len(prompts.conversation(served.llm, wanted, service.settings.fold_system).ids)
        except ValueError as error:
            raise Refusal(400, str(error).replace(str(served.llm.folder), served.name)) from None

    async with service.using(request, body.model, idle) as served:
        return json({"input_tokens": await service.beside(lambda: count(served))})


def of(body: CountBody, idle: list[str]) -> Asked:
    """The request as the server knows it. Raises Refusal."""
    if not 1 <= len(body.messages) <= settings.MAX_MESSAGES:
        raise Refusal(400, f"messages has {len(body.messages):,} of them, expected 1 to {settings.MAX_MESSAGES:,}")
    said = system(body.system, idle)
    for at, each in enumerate(body.messages):
        said += turns(f"messages[{at}]", each, idle)
    made = Asked(model=body.model, messages=said, idle=idle, tools=tools(body.tools, idle))
    wanted = body.tool_choice or ToolChoice()
    made.parallel = not wanted.disable_parallel_tool_use
    names = {"any": "required", "tool": "named"}
    asked.choose(made, names.get(wanted.type, wanted.type), wanted.name)
    if body.thinking and body.thinking.type != "adaptive":
        made.variables["enable_thinking"] = body.thinking.type == "enabled"
    if body.output_config:
        asked.effort(made, body.output_config.effort)
        made.response_format = response_format(body.output_config.format, idle)
    return made


def system(given: str | list[Any] | None, idle: list[str]) -> list[dict[str, Any]]:
    """The system's message, if there is one, without what changes every time."""
    blocks = [given] if isinstance(given, str) else given or []
    texts = [
        each if isinstance(each, str) else objects.text(f"system[{at}]", each, idle) for at, each in enumerate(blocks)
    ]
    said = "\n".join(each for each in texts if each and not each.startswith(NONCE))
    return [{"role": "system", "content": said}] if said else []


def tools(given: list[dict[str, Any]], idle: list[str]) -> list[dict[str, Any]]:
    """Tools of the client. Those that Anthropic's own service runs are left out, and said to be. Raises Refusal."""
    made = []
    for at, each in enumerate(given):
        if each.get("type") not in (None, "custom"):
            objects.note("tools", str(each.get("type")), idle)
            continue
        found = taken(f"tools[{at}]", each, objects.BLOCKS_TOOL, idle)
        made.append(asked.tool(f"tools[{at}]", found, found.get("input_schema")))
    return asked.tools(made)


def response_format(given: dict[str, Any] | None, idle: list[str]) -> dict[str, Any] | None:
    if given is None:
        return None
    found = taken("output_config.format", given, objects.SCHEMA_FORMAT, idle)
    if found.get("type") != "json_schema" or not isinstance(found.get("schema"), dict):
        raise Refusal(400, "output_config.format: expected type json_schema and a schema", "invalid_value")
    return asked.form(found["schema"], "output_config.format")


def turns(at: str, given: dict[str, Any], idle: list[str]) -> list[dict[str, Any]]:
    """A message as templates take it. Results of tools are messages of their own, before what the user says with them.
    Raises Refusal."""
    message = taken(at, given, objects.BLOCKS_MESSAGE, idle)
    role, blocks = message.get("role"), message.get("content")
    if role not in ROLES or not isinstance(blocks, (str, list)):
        said = f"{at}: expected a role ({', '.join(ROLES)}) and content, a text or blocks"
        raise Refusal(400, said, "invalid_value", "messages")
    if isinstance(blocks, str):
        return [{"role": role, "content": blocks}]
    results: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []  # and pictures
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, each in enumerate(blocks):
        place, kind = f"{at}.content[{index}]", each.get("type") if isinstance(each, dict) else None
        if kind == "text":
            texts.append({"type": "text", "text": objects.text(place, each, idle)})
        elif kind == "image" and role == "user":
            texts.append(objects.picture(place, each, idle))
        elif kind == "thinking" and role == "assistant":
            thoughts.append(str(taken(place, each, objects.THINKING, idle).get("thinking", "")))
        elif kind == "redacted_thinking" and role == "assistant":  # which nobody but Anthropic's service can read
            taken(place, each, objects.REDACTED, idle)
        elif kind == "tool_use" and role == "assistant":
            calls.append(_call(place, each, idle))
        elif kind == "tool_result" and role == "user":
            results.append(_result(place, each, idle))
        else:
            said = f"{place}: a block of type {shown(kind)} is not supported in a message of {role}"
            raise Refusal(400, said, "unsupported_content", "messages")
    seen = any(each["type"] == "image" for each in texts)
    made: dict[str, Any] = {"role": role, "content": texts if seen else "\n".join(each["text"] for each in texts)}
    if thoughts:
        made["reasoning_content"] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return [*results, made] if texts or calls or not results else results


def _call(at: str, block: dict[str, Any], idle: list[str]) -> dict[str, Any]:
    found = taken(at, block, objects.TOOL_USE, idle)
    name, given = found.get("name"), found.get("input", {})
    if not isinstance(name, str) or not isinstance(given, dict):
        raise Refusal(400, f"{at}: a tool_use needs a name, and an object as input", "invalid_value", "messages")
    function = {"name": name, "arguments": msgspec.json.encode(given).decode()}
    return {"id": str(found.get("id") or ""), "type": "function", "function": function}


def _result(at: str, block: dict[str, Any], idle: list[str]) -> dict[str, Any]:
    found = taken(at, block, objects.TOOL_RESULT, idle)
    said = plain_text(f"{at}.content", found.get("content"), idle)
    said = f"Error: {said}" if found.get("is_error") else said
    return {"role": "tool", "tool_call_id": str(found.get("tool_use_id") or ""), "content": said}


def content(answer: Answer) -> list[dict[str, Any]]:
    """The blocks of a message."""
    made: list[dict[str, Any]] = []
    if answer.reasoning:
        made.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
    if answer.content or not answer.calls:
        made.append({"type": "text", "text": answer.content})
    for name, function, arguments in answer.calls:
        given = msgspec.json.decode(arguments or "{}")
        made.append({"type": "tool_use", "id": name, "name": function, "input": given})
    return made


def ended(choice: Choice) -> dict[str, Any]:
    """Why a message ended."""
    stopped = choice.row.stopped_by
    if choice.finish == "length":
        fewer = choice.row.max_new_tokens < choice.most
        return {"stop_reason": "model_context_window_exceeded" if fewer else "max_tokens", "stop_sequence": None}
    if choice.called:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(stopped, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stopped}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def usage(job: Job) -> dict[str, int]:
    count = job.usage()
    cached = {"cache_read_input_tokens": count["cached"], "cache_creation_input_tokens": 0}
    return {"input_tokens": count["prompt"] - count["cached"], "output_tokens": count["completion"], **cached}


ROUTES = [("POST", "/v1/messages", create), ("POST", "/v1/messages/count_tokens", count_tokens)]
