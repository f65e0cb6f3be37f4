"""What OpenAI's chat and completions have in common: fields of requests, and how usage, tokens and ends are written."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from starlette.responses import Response

from minillm.engine.asked import Score
from minillm.serve import asked, settings
from minillm.serve.answering import Job
from minillm.serve.errors import Refusal
from minillm.serve.errors import openai as error_body
from minillm.serve.fields import Body
from minillm.serve.streaming import SSE, Chunks, Stream, data
from minillm.serve.tokens import Tokens

DONE = b"data: [DONE]\n\n"
LEAST = -9999.0  # JSON has no infinity
_OWN = """user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention
prompt_cache_options"""
BOOKKEEPING = dict.fromkeys(_OWN.split(), "bookkeeping of OpenAI's own service")


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Whether usage comes with a stream, at its end or with each chunk."""

    IDLE: ClassVar = {"include_obfuscation": "nothing is obfuscated"}
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool | None = None


class Shared(Body, kw_only=True):
    """Fields of both APIs: OpenAI's, and those that other servers and their clients have added."""

    IDLE: ClassVar = BOOKKEEPING
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: asked.Temperature | None = None
    top_p: asked.Share | None = None
    top_k: asked.TopK | None = None
    min_p: asked.Share | None = None
    n: int = 1
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    seed: asked.Seed | None = None
    frequency_penalty: asked.Penalty | None = None
    presence_penalty: asked.Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    logit_bias: dict[str, float] | None = None
    cache_salt: Annotated[str, Meta(max_length=settings.MAX_SALT)] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=0)] = 0
    return_token_ids: bool = False


def options(body: Shared) -> dict[str, Any]:
    """Those of `LLM.completion`. Raises Refusal."""
    if body.stream_options is not None and not body.stream:
        raise Refusal(400, "stream_options goes with stream: true", "invalid_value", "stream_options")
    if len(body.stop_token_ids or ()) > settings.MAX_BIASES:
        raise Refusal(400, f"stop_token_ids: at most {settings.MAX_BIASES:,} are allowed", "invalid_value")
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty")
    found = asked.sampling(**{name: getattr(body, name) for name in (*names, "repetition_penalty")})
    more = {
        "stop": asked.stops(body.stop),
        "stop_token_ids": body.stop_token_ids,
        "ignore_eos": body.ignore_eos or None,
        "min_new_tokens": body.min_tokens,
        "logit_bias": asked.biases(body.logit_bias),
    }
    return found | {name: value for name, value in more.items() if value is not None}


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def usage(job: Job) -> dict[str, Any]:
    count = job.usage()
    return {
        "prompt_tokens": count["prompt"],
        "completion_tokens": count["completion"],
        "total_tokens": count["prompt"] + count["completion"],
        "prompt_tokens_details": {"cached_tokens": count["cached"]},
        "completion_tokens_details": {"reasoning_tokens": count["reasoning"]},
    }


def token(tokens: Tokens, token_id: int, logprob: float) -> dict[str, Any]:
    """A token as logprobs have it: its bytes are the real ones, of a part of a character too."""
    raw = tokens.bytes_of(token_id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, LEAST), "bytes": list(raw)}


def logprobs(tokens: Tokens, ids: Sequence[int], scores: Sequence[Score], most: int) -> dict[str, Any]:
    """Those of a chat: each token with the likeliest in its place."""
    content = []
    for each, score in zip(ids, scores, strict=True):
        top = [token(tokens, other, logprob) for other, logprob in score.top[:most]]
        content.append({**token(tokens, each, score.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def stream(job: Job, chunks: Chunks, patience: float) -> Response:
    return Stream(job, chunks, lambda refusal: data(error_body(refusal)), SSE, patience)


def json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
