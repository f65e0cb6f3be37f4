"""POST /v1/completions: a text goes on, without a chat template. Prompts are texts or token ids, one or several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from minillm.engine.asked import Score
from minillm.guard.screen import shown
from minillm.serve import fields, settings
from minillm.serve.answering import Answer, Job
from minillm.serve.apis import openai
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal
from minillm.serve.service import Service, whole
from minillm.serve.streaming import KEEP_ALIVE, Chunks, data

DEFAULT_MOST = 16  # OpenAI's


class CompletionBody(openai.Shared, kw_only=True):
    """The fields of a completion."""

    IDLE: ClassVar = {**openai.BOOKKEEPING, "skip_special_tokens": "special tokens are never shown"}
    REFUSED: ClassVar = {
        "suffix": "nothing is filled in between two texts",
        "prompt_embeds": "no tensors are read from requests",
        "guided_json": "use response_format of /v1/chat/completions",
        "structured_outputs": "use response_format of /v1/chat/completions",
        "include_stop_str_in_output": "a stop string is never shown",
        "prompt_logprobs": "use echo and logprobs",
    }
    prompt: str | list[Any]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=settings.MAX_LOGPROBS)] | None = None
    echo: bool = False
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None


async def create(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), CompletionBody)
    job = await service.start(request, of(body, idle))
    if body.stream:
        return openai.stream(job, chunks(job, body), service.settings.write_timeout)
    answers = await whole(request, job)
    choices = [_choice(job, body, index, answer) for index, answer in enumerate(answers)]
    head = {"id": openai.new_id("cmpl"), "object": "text_completion", "created": job.made, "model": job.served.name}
    return openai.json({**head, "choices": choices, "usage": usage(job, body)})


def of(body: CompletionBody, idle: list[str]) -> Asked:
    """The request as the server knows it. Raises Refusal."""
    if body.max_tokens == 0 and not body.echo:
        raise Refusal(400, "max_tokens is 0: nothing is asked for; give echo too", "invalid_value", "max_tokens")
    options = openai.options(body)
    if body.logprobs is not None:
        options["logprobs"] = body.logprobs
        if body.echo:
            options["prompt_logprobs"] = body.logprobs
    return Asked(
        model=body.model,
        prompts=prompts(body.prompt),
        options=options,
        most=1 if body.max_tokens == 0 else body.max_tokens or DEFAULT_MOST,
        n=body.n,
        stream=body.stream,
        parse=False,
        salt=body.cache_salt or "",
        priority=body.priority,
        idle=idle,
    )


def usage(job: Job, body: CompletionBody) -> dict[str, Any]:
    """As ever; of a token that was written for the scores of the prompt nobody hears."""
    found = openai.usage(job)
    return found if body.max_tokens != 0 else {**found, "completion_tokens": 0, "total_tokens": found["prompt_tokens"]}


def prompts(given: str | list[Any]) -> list[str | list[int]]:
    """Each prompt by itself: a text, or ids. Raises Refusal."""
    if isinstance(given, str) or _are_ids(given):
        return [given]
    if not given or len(given) > settings.MAX_PROMPTS:
        said = f"prompt has {len(given)} of them, expected 1 to {settings.MAX_PROMPTS}"
        raise Refusal(400, said, "invalid_value", "prompt")
    for at, each in enumerate(given):
        if not isinstance(each, str) and not (isinstance(each, list) and _are_ids(each)):
            said = f"prompt[{at}] is {shown(each)}, expected a text or token ids"
            raise Refusal(400, said, "invalid_value", "prompt")
    return given


def _are_ids(given: list[Any]) -> bool:
    return bool(given) and all(type(each) is int and 0 <= each < 2**31 for each in given)


@dataclass
class Scored:
    """Logprobs of a completion as lists, which grow."""

    text_offset: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)

    def add(self, job: Job, ids: list[int], scores: list[Score | None], most: int) -> None:
        label = job.served.tokens.label
        at = self.text_offset[-1] + len(self.tokens[-1]) if self.tokens else 0
        for each, score in zip(ids, scores, strict=True):
            self.text_offset.append(at)
            self.tokens.append(label(each))
            at += len(self.tokens[-1])
            self.token_logprobs.append(None if score is None else max(score.logprob, openai.LEAST))
            top = None if score is None else score.top[:most]
            found = None if top is None else {label(other): max(logprob, openai.LEAST) for other, logprob in top}
            self.top_logprobs.append(found)

    def taken(self, start: int) -> dict[str, Any]:
        """What was added from a place on."""
        return {name: value[start:] for name, value in vars(self).items()}


def _prompt_text(job: Job, index: int) -> str:
    prompt, tokenizer = job.asked.prompts[index // job.asked.n], job.served.llm.tokenizer
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special=False) if tokenizer else ""


def _echo(job: Job, body: CompletionBody, index: int, scored: Scored) -> str:
    """The prompt, which goes in front of what was written; and its scores."""
    if not body.echo:
        return ""
    row = job.choices[index].row
    if body.logprobs is not None:
        scored.add(job, row.prompt, list(row.prompt_scores or []), body.logprobs)
    return _prompt_text(job, index)


def _choice(job: Job, body: CompletionBody, index: int, answer: Answer) -> dict[str, Any]:
    scored = Scored()
    text = _echo(job, body, index, scored)
    if body.max_tokens != 0:
        text += answer.content
        if body.logprobs is not None:
            scored.add(job, answer.tokens, list(answer.scores), body.logprobs)
    found = scored.taken(0) if body.logprobs is not None else None
    made = {"index": index, "text": text, "logprobs": found, "finish_reason": answer.finish}
    return made | ({"token_ids": answer.tokens} if body.return_token_ids else {})


async def chunks(job: Job, body: CompletionBody) -> Chunks:
    """The stream: texts as they come, why each ended, usage if it was asked for, [DONE]."""
    head = {"id": openai.new_id("cmpl"), "object": "text_completion", "created": job.made, "model": job.served.name}
    options, scored = body.stream_options, [Scored() for _ in job.choices]
    echoed: set[int] = set()
    async for event in job.events():
        if event is None:
            yield KEEP_ALIVE
            continue
        index = event.choice
        start = len(scored[index].tokens)
        text = "" if index in echoed else _echo(job, body, index, scored[index])  # scores of a prompt come with a token
        echoed.add(index)
        if body.max_tokens != 0:
            text += "".join(piece.text for piece in event.pieces)
            if body.logprobs is not None:
                scored[index].add(job, event.tokens, list(event.scores), body.logprobs)
        found = scored[index].taken(start) if body.logprobs is not None else None
        choice = {"index": index, "text": text, "logprobs": found, "finish_reason": event.finish}
        choice |= {"token_ids": event.tokens} if body.return_token_ids else {}
        more = {"usage": usage(job, body)} if options and options.continuous_usage_stats else {}
        yield data({**head, "choices": [choice], **more})
    if options and options.include_usage:
        yield data({**head, "choices": [], "usage": usage(job, body)})
    yield openai.DONE


ROUTES = [("POST", "/v1/completions", create)]
