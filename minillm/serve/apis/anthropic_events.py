"""The events of a message that is streamed: it begins, its blocks begin, grow and end, and it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.serve.answering import Choice, Job
from minillm.serve.answers.pieces import Piece
from minillm.serve.errors import Refusal
from minillm.serve.errors import anthropic as error_body
from minillm.serve.streaming import Chunks, data

BLOCKS = {"content": "text", "reasoning": "thinking", "call": "tool_use", "arguments": "tool_use"}


def event(kind: str, **values: Any) -> bytes:
    return data({"type": kind, **values}, kind)


def broken(refusal: Refusal) -> bytes:
    return data(error_body(refusal), "error")


class Blocks:
    """The blocks of one message: at most one is open."""

    def __init__(self) -> None:
        self.count, self.open = 0, ""

    def take(self, piece: Piece) -> list[bytes]:
        """The events for a piece."""
        kind, found = BLOCKS[piece.kind], []
        if kind != self.open or piece.kind == "call":
            found = [*self.end(), event("content_block_start", index=self.count, content_block=_empty(kind, piece))]
            self.count, self.open = self.count + 1, kind
        if piece.kind != "call":
            found.append(event("content_block_delta", index=self.count - 1, delta=_delta(piece)))
        return found

    def end(self) -> list[bytes]:
        """The events that end the open block."""
        if not self.open:
            return []
        kind, self.open, index = self.open, "", self.count - 1
        signed = {"type": "signature_delta", "signature": ""}
        before = [event("content_block_delta", index=index, delta=signed)] if kind == "thinking" else []
        return [*before, event("content_block_stop", index=index)]


def _empty(kind: str, piece: Piece) -> dict[str, Any]:
    if kind == "tool_use":
        return {"type": kind, "id": piece.id, "name": piece.text, "input": {}}
    return {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})


def _delta(piece: Piece) -> dict[str, Any]:
    if piece.kind == "arguments":
        return {"type": "input_json_delta", "partial_json": piece.text}
    kind = BLOCKS[piece.kind]
    return {"type": f"{kind}_delta", kind: piece.text}


async def chunks(
    job: Job, head: dict[str, Any], ended: Callable[[Choice], dict[str, Any]], usage: Callable[[Job], dict[str, int]]
) -> Chunks:
    begun = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage(job)}
    yield event("message_start", message=begun)
    yield event("ping")
    blocks = Blocks()
    async for found in job.events():
        if found is None:
            yield event("ping")
        for piece in found.pieces if found else ():
            for each in blocks.take(piece):
                yield each
    if not blocks.count:
        yield b"".join(blocks.take(Piece("content", "")))
    yield b"".join(blocks.end())
    yield event("message_delta", delta=ended(job.choices[0]), usage=usage(job))
    yield event("message_stop")
