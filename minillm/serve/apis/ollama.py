"""Ollama's own API, for clients that know no other: /api/chat and /api/generate stream a JSON object a line unless told
otherwise; the rest says what there is."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from minillm.guard.screen import shown
from minillm.serve import asked, fields
from minillm.serve.answering import Answer, Job
from minillm.serve.apis.objects import OLLAMA_MESSAGE, beside, taken
from minillm.serve.apis.openai import json, logprobs
from minillm.serve.apis.openai_chat import choice, messages, tools
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal
from minillm.serve.errors import ollama as error_body
from minillm.serve.fields import Body
from minillm.serve.models import Card
from minillm.serve.service import Service, record_of, whole
from minillm.serve.settings import MAX_LOGPROBS
from minillm.serve.streaming import LINES, Chunks, Stream, line

VERSION = "0.30.0"  # of Ollama, whose API of that time this is: clients refuse versions that are too old
LEVELS = ("low", "medium", "high", "max")
MAX_STOPS = 100
IDLE_OPTIONS = """num_ctx num_keep num_batch num_gpu num_thread main_gpu use_mmap use_mlock numa low_vram f16_kv
vocab_only logits_all repeat_last_n draft_num_predict penalize_newline""".split()


class Options(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to choose tokens. A `num_predict` of 0 or less is all that there is room for, as in Ollama's own runner."""

    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: asked.TopK | None = None
    top_p: asked.Share | None = None
    min_p: asked.Share | None = None
    seed: asked.Seed | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=2**31 - 1)] | None = None
    stop: str | list[str] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    presence_penalty: asked.Penalty | None = None
    frequency_penalty: asked.Penalty | None = None


class Shared(Body, kw_only=True):
    """The fields of /api/chat and /api/generate."""

    IDLE: ClassVar = {"keep_alive": "the model stays loaded", "context": "what prompts share is found without it"}
    REFUSED: ClassVar = {
        "suffix": "nothing is filled in between two texts",
        "template": "templates come with the model, or by --chat-template",
        "truncate": "a prompt that is too long is refused, never cut",
        "shift": "a context that is full ends an answer",
    }
    model: str | None = None
    stream: bool = True
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] = 0


class ChatBody(Shared, kw_only=True):
    REFUSED: ClassVar = {**Shared.REFUSED, "images": "they go into the message that shows them"}
    messages: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)


class GenerateBody(Shared, kw_only=True):
    prompt: str = ""
    images: list[str] = msgspec.field(default_factory=list)
    system: str | None = None
    raw: bool = False


class NameBody(Body, kw_only=True):
    IDLE: ClassVar = {"verbose": "there is no more to say"}
    model: str | None = None
    name: str | None = None


async def chat(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), ChatBody)
    if not body.messages:
        return await _loaded(service, request, body, idle, {"message": {"role": "assistant", "content": ""}})
    made = of(body, idle)
    said = [_message(f"messages[{at}]", each) for at, each in enumerate(body.messages)]
    made.messages, made.tools = messages(said, idle), tools(body.tools, idle)
    asked.choose(made, *choice(None))

    def part(answer: Answer) -> dict[str, Any]:
        return {"message": {"role": "assistant", **_said(answer, "content"), **_calls(answer)}}

    return await _answer(service, request, body, made, part)


async def generate(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), GenerateBody)
    if not body.prompt and not body.images:
        return await _loaded(service, request, body, idle, {"response": ""})
    made = of(body, idle)
    if body.raw or service.models.find(body.model).card.template is None:
        if idle_here := [name for name in ("system", "images") if getattr(body, name)]:
            raise Refusal(400, f"{idle_here[0]} needs a chat template: none is used here, or this model has none")
        made.prompts, made.parse = [body.prompt], False
    else:
        system = [{"role": "system", "content": body.system}] if body.system else []
        content = beside("images", body.images, body.prompt)
        made.messages = messages([*system, {"role": "user", "content": content}], idle)
    return await _answer(service, request, body, made, lambda answer: _said(answer, "response"))


def of(body: Shared, idle: list[str]) -> Asked:
    """The request as the server knows it, but for its prompt. Raises Refusal."""
    idle += [f"options.{name}" for name in body.options if name in IDLE_OPTIONS]
    kept = {name: each for name, each in body.options.items() if name not in IDLE_OPTIONS and each is not None}
    options: Options = fields.converted(kept, Options)
    names = ("temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty")
    found = {name: getattr(options, name) for name in names}
    chosen = asked.sampling(**found, repetition_penalty=options.repeat_penalty)
    if stops := asked.stops(options.stop, MAX_STOPS):
        chosen["stop"] = stops
    if body.logprobs:
        chosen["logprobs"] = body.top_logprobs
    most = options.num_predict if options.num_predict and options.num_predict > 0 else None
    made = Asked(model=body.model, options=chosen, most=most, clamp=True, stream=body.stream, idle=idle)
    if isinstance(body.think, str) and body.think not in LEVELS:
        raise Refusal(400, f"think is {shown(body.think)}, expected true, false, or one of {', '.join(LEVELS)}")
    if body.think is not None:
        asked.effort(made, body.think if isinstance(body.think, str) else None)
        made.variables["enable_thinking"] = body.think is not False
    if isinstance(body.format, dict):
        made.response_format = asked.form(body.format, "format")
    elif body.format:
        if body.format != "json":
            raise Refusal(400, f"format is {shown(body.format)}, expected json or a JSON schema")
        made.response_format = {"type": "json_object"}
    return made


def _message(at: str, given: dict[str, Any]) -> dict[str, Any]:
    """As OpenAI has it: calls with arguments as they are, and results by the tool's name. Raises Refusal."""
    found = taken(at, given, OLLAMA_MESSAGE, [])
    found["content"] = beside(f"{at}.images", found.pop("images", None), found.get("content"))
    name = found.pop("tool_name", None)
    return found if name is None else {**found, "name": name}


def _said(answer: Answer, name: str) -> dict[str, Any]:
    return {name: answer.content, **({"thinking": answer.reasoning} if answer.reasoning else {})}


def _calls(answer: Answer) -> dict[str, Any]:
    """Calls, with arguments as objects. Those that were cut off are left out."""
    calls = [
        {"id": name, "function": {"name": function, "arguments": given}}
        for name, function, arguments in answer.calls
        if isinstance(given := _object(arguments), dict)
    ]
    return {"tool_calls": calls} if calls else {}


def _object(arguments: str) -> Any:
    try:
        return msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return None


Part = Callable[[Answer], dict[str, Any]]


async def _answer(service: Service, request: Request, body: Shared, made: Asked, part: Part) -> Response:
    job = await service.start(request, made)
    if body.stream:
        patience = service.settings.write_timeout
        return Stream(job, chunks(job, body, part), lambda refusal: line(error_body(refusal)), LINES, patience)
    (answer,) = await whole(request, job)
    return json({**_head(job.served.name), **part(answer), **_scores(job, body, answer), **_end(job)})


async def chunks(job: Job, body: Shared, part: Part) -> Chunks:
    """A line for what is new; calls when they are whole. The last has no text, but counts and times."""
    name, calls = job.served.name, Answer()
    async for event in job.events():
        if event is None:
            continue
        new = Answer()
        for piece in event.pieces:
            if piece.kind == "content":
                new.content += piece.text
            elif piece.kind == "reasoning":
                new.reasoning += piece.text
        calls.add(event)
        new.tokens, new.scores = event.tokens, event.scores
        if event.finish:
            new.calls = calls.calls
        if new.content or new.reasoning or new.calls or (body.logprobs and new.tokens):
            yield line({**_head(name), **part(new), **_scores(job, body, new), "done": False})
    yield line({**_head(name), **part(Answer()), **_end(job)})


def _scores(job: Job, body: Shared, answer: Answer) -> dict[str, Any]:
    if not body.logprobs:
        return {}
    return {"logprobs": logprobs(job.served.tokens, answer.tokens, answer.scores, body.top_logprobs)["content"]}


def _head(name: str) -> dict[str, Any]:
    return {"model": name, "created_at": _now()}


def _now(seconds: float | None = None) -> str:
    at = datetime.fromtimestamp(time.time() if seconds is None else seconds, timezone.utc)
    return at.isoformat().replace("+00:00", "Z")


def _end(job: Job) -> dict[str, Any]:
    """The end of an answer: why, tokens, and times in nanoseconds."""
    choice, count = job.choices[0], job.usage()
    _, started, first, last = choice.times
    times = {
        "total_duration": _between(job.began, time.monotonic()),
        "load_duration": 0,
        "prompt_eval_duration": _between(started, first),
        "eval_duration": _between(first, last),
    }
    reason = "length" if choice.finish == "length" else "stop"
    counts = {"prompt_eval_count": count["prompt"], "eval_count": count["completion"]}
    return {"done": True, "done_reason": reason, **times, **counts}


def _between(start: float | None, end: float | None) -> int:
    return 0 if start is None or end is None else max(0, int((end - start) * 1e9))


async def _loaded(service: Service, request: Request, body: Shared, idle: list[str], empty: dict[str, Any]) -> Response:
    """Without a prompt clients only ask for the model to be loaded."""
    if body.model is None:
        raise Refusal(400, "model is required")
    async with service.using(request, body.model, idle) as served:
        return json({**_head(served.name), **empty, "done": True, "done_reason": "load"})


async def version(service: Service, request: Request) -> Response:
    return json({"version": VERSION})


async def tags(service: Service, request: Request) -> Response:
    return json({"models": [_card(each.card, name) for name, each in service.models.named.items()]})


async def ps(service: Service, request: Request) -> Response:
    far = {"expires_at": _now(time.time() + 365 * 86400), "context_length": 0}
    there = [(name, served.card) for served in service.models.loaded for name in served.names]
    cards = [{**_card(card, name), **far, "context_length": card.room} for name, card in there]
    return json({"models": [{**each, "size_vram": 0} for each in cards]})


async def show(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), NameBody)
    record_of(request).update({"idle": idle} if idle else {})
    found = service.models.find(body.model or body.name).card
    architecture = re.sub(r"\W", "_", found.architecture)
    info = {"general.architecture": architecture, f"{architecture}.context_length": found.room,
            "general.parameter_count": found.parameters}  # fmt: skip
    card = _card(found, found.name)
    made = {"modelfile": "", "parameters": "", "template": found.template or "", "license": ""}
    return json({**made, "details": card["details"], "model_info": info, "capabilities": found.abilities,
                 "modified_at": card["modified_at"]})  # fmt: skip


def _card(card: Card, name: str) -> dict[str, Any]:
    millions = card.parameters / 1e6
    size = f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions:.2f}M"
    details = {"parent_model": "", "format": "safetensors", "family": card.architecture, "families": None,
               "parameter_size": size, "quantization_level": card.dtype}  # fmt: skip
    found = {"name": name, "model": name, "modified_at": _now(card.created), "size": card.size}
    return {**found, "digest": hashlib.sha256(card.name.encode()).hexdigest(), "details": details}


ROUTES = [
    ("POST", "/api/chat", chat),
    ("POST", "/api/generate", generate),
    ("GET", "/api/version", version),
    ("GET", "/api/tags", tags),
    ("GET", "/api/ps", ps),
    ("POST", "/api/show", show),
]
