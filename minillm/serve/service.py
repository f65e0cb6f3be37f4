"""What all requests share: models, keys, counters; and how a request becomes a job."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request

from minillm.engine.batching.threaded import Busy
from minillm.engine.completion import Completion, Prompt
from minillm.llm import DEFAULT_NEW_TOKENS, LLM
from minillm.serve import fields, prompts
from minillm.serve.answering import Answer, Choice, Job
from minillm.serve.answers import grammar
from minillm.serve.answers.reader import Reader
from minillm.serve.answers.styles import Style
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal, retry, too_long
from minillm.serve.keys import Key, Keys
from minillm.serve.metrics import Metrics
from minillm.serve.models import Served
from minillm.serve.models.catalog import Catalog, Copy
from minillm.serve.settings import MAX_PROMPTS, Settings

PLAIN = Style("plain", thinking=())  # of a text that is no answer to messages
LONG = 100_000  # bytes of a body
WORKERS = 4  # threads that make tokens and grammars, so that the event loop does not
TAIL = 400  # tokens at the end of a prompt that say how an answer begins

T = TypeVar("T")
Groups = list[tuple[list[Completion], list[Reader]]]  # rows for each prompt, each with the reader of its answer


class Gone(Exception):
    """The client has left."""


class Service:
    """One server's."""

    def __init__(self, models: Catalog, keys: Keys, settings: Settings):
        self.models, self.keys, self.settings = models, keys, settings
        self.metrics = Metrics(models, settings.metrics_prefix)
        self.jobs: set[Job] = set()
        self.draining = False
        self._workers = ThreadPoolExecutor(WORKERS, "minillm prompts")

    async def beside(self, work: Callable[[], T]) -> T:
        """Run what takes long beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    async def parsed(self, request: Request) -> dict[str, Any]:
        """A body as a JSON object; a long one is read beside the event loop. Raises Refusal."""
        data = await request.body()
        return fields.parsed(data) if len(data) < LONG else await self.beside(lambda: fields.parsed(data))

    def open(self) -> None:
        """Raises Refusal where the server takes no more requests."""
        if self.draining:
            raise self.rejected(retry(503, "the server is shutting down; try another, or later", 5, "shutting_down"))

    async def start(self, request: Request, asked: Asked, rows: Callable[[Served], Groups] | None = None) -> Job:
        """Hand a request in; `rows` makes what goes to the engine of it, by default answers to its prompts. Raises
        Refusal, before anything of an answer is sent."""
        self.open()
        copy = self.models.ready(asked.model)
        if copy is None:
            copy = await unless_gone(request, self.models.take(asked.model))
        try:
            made, served = rows or (lambda served: prepare(served, asked, self.settings)), copy.served
            groups = await self.beside(lambda: made(served))
            return self._submit(request, copy, asked, groups)
        except BaseException:
            copy.give()
            raise

    def _submit(self, request: Request, copy: Copy, asked: Asked, groups: Groups) -> Job:
        """Hand rows in; the job that comes of them gives the model back. Raises Refusal."""
        self.open()  # it may have begun to drain meanwhile
        served, key, record = copy.served, key_of(request), record_of(request)
        record.update(model=served.name, stream=asked.stream, **({"idle": asked.idle} if asked.idle else {}))
        rows = [row for group, _ in groups for row in group]
        likely = min(asked.most or DEFAULT_NEW_TOKENS, rows[0].max_new_tokens)
        try:
            lease = key.admit(sum(len(group[0].prompt) for group, _ in groups) + likely * len(rows))
        except Refusal as refusal:
            raise self.rejected(refusal) from None
        choices: list[Choice] = []
        how = {
            "client": key.name,
            "salt": f"{key.name}\0{asked.salt}".encode("utf-8", "replace") if asked.salt else b"",
            "priority": asked.priority,
            "deadline": time.monotonic() + self.settings.request_timeout,
        }
        try:
            for group, readers in groups:
                tickets = served.engine.submit_many(group, **how)
                scored = asked.options.get("logprobs") is not None
                for ticket, reader in zip(tickets, readers, strict=True):
                    choices.append(Choice(len(choices), ticket, reader, scored, asked.most or 0, served.marks))
        except (Busy, ValueError) as error:
            for choice in choices:
                served.engine.cancel(choice.ticket)
            lease.end(0)
            if isinstance(error, Busy):
                raise self.rejected(retry(503, str(error), 2, "overloaded")) from None
            raise Refusal(400, str(error), "context_length_exceeded") from None
        job = Job(served, asked, choices, lease, self.settings.keep_alive, lambda job: self._ended(job, copy, record))
        self.jobs.add(job)
        return job

    @contextlib.asynccontextmanager
    async def using(self, request: Request, name: str | None, idle: list[str]) -> AsyncIterator[Served]:
        """A model, for a request without an answer of its own; it counts among those of its key. `idle` are the fields
        that were without effect. Raises Refusal."""
        self.open()
        try:
            lease = key_of(request).admit(0)
        except Refusal as refusal:
            raise self.rejected(refusal) from None
        try:
            async with self.models.using(name) as served:
                record_of(request)["model"] = served.name
                yield served
        finally:
            record_of(request).update({"idle": idle} if idle else {})
            lease.end(0)

    def rejected(self, refusal: Refusal) -> Refusal:
        """Count a refusal that is none of the client's doing."""
        self.metrics.rejected.labels(refusal.code or str(refusal.status)).inc()
        return refusal

    def _ended(self, job: Job, copy: Copy, record: dict[str, Any]) -> None:
        self.jobs.discard(job)
        copy.give()
        self.metrics.count(job)
        record.update(job.usage(), finish=[choice.finish or "abort" for choice in job.choices])
        if errors := sorted({choice.error for choice in job.choices if choice.error}):
            record["error"] = errors[0]
        arrived, started, first, _ = job.choices[0].times
        record["queue"] = _since(arrived, started)
        record["ttft"] = _since(arrived, first)

    async def drain(self, timeout: float) -> None:
        """Take no more, let what runs come to its end, and after `timeout` seconds end it."""
        self.draining = self.models.closing = True
        until = time.monotonic() + timeout
        while self.jobs and time.monotonic() < until:
            await asyncio.sleep(0.05)
        for job in list(self.jobs):
            job.stop()

    def healthy(self) -> bool:
        """Whether each engine lives, and makes steps where it has something to do."""
        states = [each.engine.health() for each in self.models.loaded]
        return all(each["alive"] and each["seconds_since_step"] < self.settings.stuck_after for each in states)

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
        self.models.close()


def prepare(served: Served, asked: Asked, settings: Settings) -> Groups:
    """Rows for each prompt, each with the reader of its answer. Raises Refusal."""
    if not 1 <= asked.n <= settings.max_batch:
        raise Refusal(400, f"n is {asked.n}, it must be from 1 to {settings.max_batch}", "invalid_value", "n")
    try:
        ids = prompts.of(served.llm, asked, settings.fold_system)
        if not ids or len(ids) * asked.n > MAX_PROMPTS:
            said = f"{len(ids)} prompts × n {asked.n} answers, from 1 to {MAX_PROMPTS} are allowed"
            raise Refusal(400, said, "invalid_value", "prompt")
        _drop_idle(served.llm, asked)
        return [_rows(served, asked, each) for each in ids]
    except ValueError as error:
        raise Refusal(400, str(error).replace(str(served.llm.folder), served.name), "invalid_value") from None


def _drop_idle(llm: LLM, asked: Asked) -> None:
    """Leave out what has no effect where the checkpoint is greedy by itself: the log says so, not a line beside it."""
    if llm.sampling(temperature=asked.options.get("temperature")).temperature == 0:
        names = ("top_p", "top_k", "min_p", "seed")
        asked.idle += [name for name in names if asked.options.pop(name, None) is not None]


def _rows(served: Served, asked: Asked, given: Prompt) -> tuple[list[Completion], list[Reader]]:
    prompt, inserted = given
    llm, room = served.llm, served.room - len(prompt)
    if room < 1 or (not asked.clamp and (asked.most or 1) > room):
        raise too_long(len(prompt), asked.most or 1, served.room)
    stated = llm.generation_config.get("max_new_tokens")
    most = min(room, asked.most or (stated if isinstance(stated, int) else room))
    if (least := asked.options.get("min_new_tokens", 0)) > most:
        said = f"min_tokens is {least:,}, and at most {most:,} tokens can be written; ask for fewer"
        raise Refusal(400, said, "invalid_value", "min_tokens")
    options: dict[str, Any] = {**asked.options, "max_new_tokens": most, "raw": True}
    tail = ""
    if asked.messages is not None and not asked.options.get("ignore_eos"):
        options["stop_token_ids"] = sorted({*asked.options.get("stop_token_ids", ()), *served.turn_ids})
    if asked.parse and llm.tokenizer:
        tail = llm.tokenizer.decode(prompt[-TAIL:], skip_special=False)
    rows, readers = [], []
    for index in range(asked.n):
        seed = {} if asked.options.get("seed") is None else {"seed": (asked.options["seed"] + index) % 2**63}
        row = llm.completion(prompt_ids=prompt, **{**options, **seed}, guide=_guide(served, asked, tail))
        row.inserted = inserted
        rows.append(row)
        style = served.style if asked.parse else PLAIN
        readers.append(Reader(style, tail, _callable(asked), early=asked.stream, specials=served.specials))
    return rows, readers


def _callable(asked: Asked) -> dict[str, dict[str, Any]]:
    """The tools that an answer may call, with the schemas of their parameters."""
    tools = asked.tools if asked.tool_choice != "none" else []
    return {each["function"]["name"]: each["function"].get("parameters", {}) for each in tools}


def _guide(served: Served, asked: Asked, tail: str) -> Any:
    """What lets only the right tokens through, where something was asked for that needs it."""
    free = asked.tool_choice in ("none", "auto") and not (asked.tool_choice == "auto" and asked.strict)
    if free and asked.response_format is None:
        return None
    choice = str(asked.tool) if asked.tool_choice == "named" else asked.tool_choice
    tokenizer, form = served.llm.tokenizer, asked.response_format
    return grammar.compiled(tokenizer, served.written, asked.tools, choice, asked.parallel, form, tail, served.turn_ids)


def key_of(request: Request) -> Key:
    return request.scope["state"]["key"]


def record_of(request: Request) -> dict[str, Any]:
    """What the log will say of a request."""
    return request.scope["state"]["record"]


def _since(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 4)


async def whole(request: Request, job: Job) -> list[Answer]:
    """The answers of a job, which ends with its client. Raises Gone, and Refusal."""
    try:
        return await unless_gone(request, job.whole())
    finally:
        job.close()  # a task that is ended before it has begun does nothing by itself


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is ended when the client leaves. Raises Gone then."""
    task = asyncio.ensure_future(work)
    left = asyncio.create_task(_leaving(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for each in (task, left):
            each.cancel()
        await asyncio.wait({task, left})


async def _leaving(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
