"""POST /v1/chat/completions: OpenAI's, with the fields that other servers and their clients have added."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from minillm.guard.screen import shown
from minillm.serve import asked, fields, settings
from minillm.serve.answering import Answer, Event, Job
from minillm.serve.apis import objects, openai
from minillm.serve.apis.objects import taken
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal
from minillm.serve.service import Service, whole
from minillm.serve.streaming import KEEP_ALIVE, Chunks, data

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatBody(openai.Shared, kw_only=True):
    """The fields of a chat completion."""

    IDLE: ClassVar = {
        **openai.BOOKKEEPING,
        "verbosity": "no template knows it",
        "prediction": "guesses are the engine's own affair",
        "skip_special_tokens": "special tokens are never shown",
    }
    REFUSED: ClassVar = {
        "functions": "use tools",
        "function_call": "use tool_choice",
        "audio": "answers are text",
        "web_search_options": "this server fetches nothing",
        "chat_template": "templates come with the model, or by --chat-template",
        "guided_json": "use response_format",
        "guided_regex": "use response_format",
        "guided_choice": "use response_format",
        "guided_grammar": "use response_format",
        "structured_outputs": "use response_format",
        "thinking_token_budget": "use max_tokens, or reasoning_effort",
        "include_stop_str_in_output": "a stop string is never shown",
        "echo": "a chat has no prompt to repeat; use /v1/completions",
        "prompt_logprobs": "use /v1/completions with echo",
        "moderation": "this server has none",
    }
    messages: list[dict[str, Any]]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=settings.MAX_LOGPROBS)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    reasoning_effort: asked.Effort | None = None
    modalities: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None


async def create(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), ChatBody)
    wanted = of(body, idle)
    job = await service.start(request, wanted)
    if body.stream:
        return openai.stream(job, chunks(job, body), service.settings.write_timeout)
    answers = await whole(request, job)
    choices = [_choice(job, body, index, answer) for index, answer in enumerate(answers)]
    head = {"id": openai.new_id("chatcmpl"), "object": "chat.completion", "created": job.made}
    return openai.json({**head, "model": job.served.name, "choices": choices, "usage": openai.usage(job)})


def of(body: ChatBody, idle: list[str]) -> Asked:
    """The request as the server knows it. Raises Refusal."""
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal(400, "top_logprobs goes with logprobs: true", "invalid_value", "top_logprobs")
    if body.modalities not in (None, ["text"]):
        raise Refusal(400, f"modalities is {shown(body.modalities)}; answers are text", "invalid_value", "modalities")
    options = openai.options(body)
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    made = Asked(
        model=body.model,
        messages=messages(body.messages, idle),
        tools=tools(body.tools, idle),
        parallel=body.parallel_tool_calls,
        response_format=response_format(body.response_format, idle),
        options=options,
        most=body.max_completion_tokens or body.max_tokens,
        n=body.n,
        stream=body.stream,
        variables=asked.variables(body.chat_template_kwargs),
        unfinished=body.continue_final_message,
        prompted=body.add_generation_prompt,
        salt=body.cache_salt or "",
        priority=body.priority,
        idle=idle,
    )
    asked.effort(made, body.reasoning_effort)
    asked.choose(made, *choice(body.tool_choice))
    return made


def messages(given: list[dict[str, Any]], idle: list[str]) -> list[dict[str, Any]]:
    """Messages as templates take them. Raises Refusal that names the message."""
    if not 1 <= len(given) <= settings.MAX_MESSAGES:
        said = f"messages has {len(given):,} of them, expected 1 to {settings.MAX_MESSAGES:,}"
        raise Refusal(400, said, "invalid_value", "messages")
    return [_message(f"messages[{at}]", each, idle) for at, each in enumerate(given)]


def _message(at: str, given: dict[str, Any], idle: list[str]) -> dict[str, Any]:
    found = taken(at, given, objects.MESSAGE, idle)
    if found.get("role") not in ROLES:
        said = f"{at}.role is {shown(given.get('role'))}, expected one of {', '.join(ROLES)}"
        raise Refusal(400, said, "invalid_value", "messages")
    for name in ("reasoning_content", "reasoning", "thinking", "tool_call_id", "name"):
        if not isinstance(found.get(name, ""), str):
            raise Refusal(400, f"{at}.{name} is {shown(found[name])}, expected a text", "invalid_value", "messages")
    if calls := found.pop("tool_calls", None):
        if not isinstance(calls, list):
            raise Refusal(400, f"{at}.tool_calls is {shown(calls)}, expected a list", "invalid_value", "messages")
        found["tool_calls"] = [_call(f"{at}.tool_calls[{n}]", each, idle) for n, each in enumerate(calls)]
    read = objects.content if found["role"] == "user" else objects.plain_text
    return {**found, "content": read(f"{at}.content", found.get("content"), idle)}


def _call(at: str, given: Any, idle: list[str]) -> dict[str, Any]:
    call = taken(at, given, objects.CALL, idle)
    function = taken(f"{at}.function", call.get("function"), objects.CALL_FUNCTION, idle)
    name, arguments = function.get("name"), function.get("arguments", "")
    if call.get("type", "function") != "function" or not isinstance(name, str):
        said = f"{at} is of type {shown(call.get('type'))} or has no name; expected a function with a name"
        raise Refusal(400, said, "invalid_value", "messages")
    if not isinstance(arguments, (str, dict)):
        raise Refusal(400, f"{at}: the arguments are {shown(arguments)}, expected JSON", "invalid_value", "messages")
    made = {"name": name, "arguments": arguments}
    return {"id": str(call.get("id") or ""), "type": "function", "function": made}


def tools(given: list[dict[str, Any]], idle: list[str]) -> list[dict[str, Any]]:
    """Functions that may be called. Raises Refusal."""
    made = []
    for at, each in enumerate(given):
        if each.get("type") != "function" or not isinstance(each.get("function"), dict):
            said = f"tools[{at}] is of type {shown(each.get('type'))}; this server has tools of type 'function' only"
            raise Refusal(400, said, "invalid_value", "tools")
        taken(f"tools[{at}]", each, objects.TOOL, idle)
        function = taken(f"tools[{at}].function", each["function"], objects.TOOL_FUNCTION, idle)
        made.append(asked.tool(f"tools[{at}]", function, function.get("parameters")))
    return asked.tools(made)


def choice(given: Any) -> tuple[str, str | None]:
    """Of "none", "auto", "required" and a function by its name, which it is. Raises Refusal."""
    if given is None or given in ("none", "auto", "required"):
        return given or "auto", None
    if isinstance(given, dict) and given.get("type") == "function" and isinstance(given.get("function"), dict):
        taken("tool_choice", given, objects.CHOICE, [])
        return "named", taken("tool_choice.function", given["function"], objects.CHOICE_FUNCTION, []).get("name")
    said = f"tool_choice is {shown(given)}, expected none, auto, required or a function"
    raise Refusal(400, said, "invalid_value", "tool_choice")


def response_format(given: dict[str, Any] | None, idle: list[str]) -> dict[str, Any] | None:
    """None for text, {"type": "json_object"}, or one with a schema. Raises Refusal."""
    found = taken("response_format", given or {}, objects.FORMAT, idle)
    kind, inner = found.get("type", "text"), found.get("json_schema")
    if kind in ("text", "json_object") and inner is None:
        return None if kind == "text" else {"type": kind}
    if kind != "json_schema" or not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        said = "response_format: expected text, json_object, or json_schema with json_schema.schema"
        raise Refusal(400, said, "invalid_value", "response_format")
    taken("response_format.json_schema", inner, objects.JSON_SCHEMA, idle)
    return asked.form(inner["schema"], "response_format")


def _choice(job: Job, body: ChatBody, index: int, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or (None if answer.calls else "")}
    if answer.reasoning:
        message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
    if answer.calls:
        message["tool_calls"] = [
            {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}
            for name, function, arguments in answer.calls
        ]
    made = {"index": index, "message": message, "finish_reason": answer.finish, "logprobs": None}
    if body.logprobs:
        made["logprobs"] = openai.logprobs(job.served.tokens, answer.tokens, answer.scores, body.top_logprobs or 0)
    return made | ({"token_ids": answer.tokens} if body.return_token_ids else {})


async def chunks(job: Job, body: ChatBody) -> Chunks:
    """The stream of an answer: who speaks, deltas, why it ended, usage if it was asked for, [DONE]."""
    head = {"id": openai.new_id("chatcmpl"), "object": "chat.completion.chunk", "created": job.made}
    head["model"] = job.served.name
    options = body.stream_options

    def chunk(choices: list[dict[str, Any]], counted: bool = False) -> bytes:
        if options is None or not (options.include_usage or options.continuous_usage_stats):
            return data({**head, "choices": choices})
        usage = openai.usage(job) if counted or options.continuous_usage_stats else None
        return data({**head, "choices": choices, "usage": usage})

    for index in range(len(job.choices)):
        begun = {"role": "assistant", "content": ""}
        yield chunk([{"index": index, "delta": begun, "logprobs": None, "finish_reason": None}])
    async for event in job.events():
        for each in _deltas(job, body, event) if event else ():
            yield chunk([each])
        if event is None:
            yield KEEP_ALIVE
    if options is not None and options.include_usage:
        yield chunk([], counted=True)
    yield openai.DONE


def _deltas(job: Job, body: ChatBody, event: Event) -> list[dict[str, Any]]:
    """The choices of the chunks for an event. The first has the scores of all its tokens."""
    deltas = [delta(piece) for piece in event.pieces]
    if not deltas and event.tokens and (body.logprobs or body.return_token_ids):
        deltas = [{}]
    made: list[dict[str, Any]]
    made = [{"index": event.choice, "delta": each, "logprobs": None, "finish_reason": None} for each in deltas]
    if body.logprobs and event.tokens and made:
        scores = openai.logprobs(job.served.tokens, event.tokens, event.scores, body.top_logprobs or 0)
        made[0]["logprobs"] = scores
    if body.return_token_ids and made:
        made[0]["token_ids"] = event.tokens
    if event.finish:
        made.append({"index": event.choice, "delta": {}, "logprobs": None, "finish_reason": event.finish})
    return made


def delta(piece: Any) -> dict[str, Any]:
    """What a piece adds to a message."""
    if piece.kind == "content":
        return {"content": piece.text}
    if piece.kind == "reasoning":
        return {"reasoning_content": piece.text, "reasoning": piece.text}
    if piece.kind == "call":
        function = {"name": piece.text, "arguments": ""}
        return {"tool_calls": [{"index": piece.index, "id": piece.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


ROUTES = [("POST", "/v1/chat/completions", create)]
