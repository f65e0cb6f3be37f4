"""The output of a response: items, and the events in which they begin, grow and end."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from minillm.serve.answering import Answer, Event, Job
from minillm.serve.answers.pieces import Piece
from minillm.serve.apis.openai import logprobs
from minillm.serve.errors import Refusal
from minillm.serve.streaming import KEEP_ALIVE, Chunks, data
from minillm.serve.tokens import Tokens

ITEMS = {"content": "message", "reasoning": "reasoning", "call": "function_call", "arguments": "function_call"}
IDS = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


def usage(job: Job) -> dict[str, Any]:
    count = job.usage()
    return {
        "input_tokens": count["prompt"],
        "input_tokens_details": {"cached_tokens": count["cached"]},
        "output_tokens": count["completion"],
        "output_tokens_details": {"reasoning_tokens": count["reasoning"]},
        "total_tokens": count["prompt"] + count["completion"],
    }


def ended(job: Job) -> dict[str, Any]:
    """How a response ended."""
    cut = job.choices[0].finish == "length"
    details = {"reason": "max_output_tokens"} if cut else None
    status = "incomplete" if cut else "completed"
    return {"status": status, "incomplete_details": details, "completed_at": int(time.time())}


class Output:
    """Items, built of pieces. `custom` are names of tools that take a text, which models call as functions with one
    argument. `most` is how many likeliest tokens go with each; None: no scores."""

    def __init__(self, custom: frozenset[str], tokens: Tokens, most: int | None):
        self.custom, self.tokens, self.most = custom, tokens, most
        self.items: list[dict[str, Any]] = []
        self.text, self.open = "", ""
        self.scores: list[dict[str, Any]] = []
        self.numbers = itertools.count()

    def of(self, answer: Answer) -> list[dict[str, Any]]:
        """The items of a whole answer."""
        pieces = [Piece("reasoning", answer.reasoning)] if answer.reasoning else []
        pieces += [Piece("content", answer.content)] if answer.content or not answer.calls else []
        for name, function, arguments in answer.calls:
            pieces += [Piece("call", function, id=name), Piece("arguments", arguments)]
        for _ in self.take(Event(0, pieces, answer.tokens, answer.scores)):
            pass
        for _ in self.end():
            pass
        return self.items

    def take(self, event: Event) -> Iterator[bytes]:
        """The events for what is new."""
        if self.most is not None and event.scores:
            self.scores += logprobs(self.tokens, event.tokens, event.scores, self.most)["content"]
        for piece in event.pieces:
            kind = ITEMS[piece.kind]
            if kind != self.open or piece.kind == "call":
                yield from self.end()
                yield from self._begin(kind, piece)
            if piece.kind != "call":
                self.text += piece.text
                yield from self._grow(piece.text)

    def event(self, kind: str, **values: Any) -> bytes:
        return data({"type": kind, "sequence_number": next(self.numbers), **values}, kind)

    def broken(self, refusal: Refusal) -> bytes:
        values = {"code": refusal.code or refusal.kind, "message": refusal.message, "param": refusal.param}
        return self.event("error", **values)

    def _place(self, part: bool = True) -> dict[str, Any]:
        where = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return where | ({"content_index": 0} if part else {})

    def _begin(self, kind: str, piece: Piece) -> Iterator[bytes]:
        kind = "custom_tool_call" if piece.kind == "call" and piece.text in self.custom else kind
        self.open, self.text = "function_call" if kind == "custom_tool_call" else kind, ""
        item: dict[str, Any] = {"id": new_id(IDS[kind]), "type": kind, "status": "in_progress"}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        else:
            text = {"input": ""} if kind == "custom_tool_call" else {"arguments": ""}
            item |= {"call_id": piece.id, "name": piece.text, **text}
        self.items.append(item)
        yield self.event("response.output_item.added", output_index=len(self.items) - 1, item=item)
        if kind == "message":
            yield self.event("response.content_part.added", **self._place(), part=_text_part("", []))

    def _grow(self, text: str) -> Iterator[bytes]:
        kind = self.items[-1]["type"]
        if kind == "message":
            yield self.event("response.output_text.delta", **self._place(), delta=text, logprobs=[])
        elif kind == "reasoning":
            yield self.event("response.reasoning_text.delta", **self._place(), delta=text)
        elif kind == "function_call":
            yield self.event("response.function_call_arguments.delta", **self._place(False), delta=text)

    def end(self) -> Iterator[bytes]:
        """The events that end the open item. The text of a tool that takes one is known only now."""
        if not self.open:
            return
        self.open, item, text = "", self.items[-1], self.text
        item["status"] = "completed"
        if item["type"] == "message":
            part = _text_part(text, self.scores)
            item["content"] = [part]
            yield self.event("response.output_text.done", **self._place(), text=text, logprobs=self.scores)
            yield self.event("response.content_part.done", **self._place(), part=part)
        elif item["type"] == "reasoning":
            item["content"] = [{"type": "reasoning_text", "text": text}]
            yield self.event("response.reasoning_text.done", **self._place(), text=text)
        elif item["type"] == "function_call":
            item["arguments"] = text
            place = self._place(False)
            yield self.event("response.function_call_arguments.done", **place, name=item["name"], arguments=text)
        else:
            item["input"] = _free_text(text)
            place = self._place(False)
            yield self.event("response.custom_tool_call_input.delta", **place, delta=item["input"])
            yield self.event("response.custom_tool_call_input.done", **place, input=item["input"])
        yield self.event("response.output_item.done", output_index=len(self.items) - 1, item=item)


def _text_part(text: str, scores: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}


def _free_text(arguments: str) -> str:
    try:
        return str(msgspec.json.decode(arguments)["input"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return arguments


async def chunks(job: Job, head: dict[str, Any], output: Output) -> Chunks:
    yield output.event("response.created", response=head)
    yield output.event("response.in_progress", response=head)
    async for event in job.events():
        if event is None:
            yield KEEP_ALIVE
        for each in output.take(event) if event else ():
            yield each
    if not output.items:
        for each in output.take(Event(0, [Piece("content", "")], [], [])):
            yield each
    for each in output.end():
        yield each
    done = {**head, **ended(job), "output": output.items, "usage": usage(job)}
    yield output.event(f"response.{done['status']}", response=done)
