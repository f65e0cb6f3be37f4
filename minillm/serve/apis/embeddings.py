"""POST /v1/embeddings: texts as vectors, of what lies behind the last layer and its norm.

    mean   v = norm(mean_t h_t)   over all tokens of the text
    last   v = norm(h_T)          of the last token, which has read all others

both of length 1 (arXiv:2201.10005 takes the last). Vectors of a model that was trained to write are fit for rough
comparisons; those of one that was trained for embeddings are better.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from minillm.engine.asked import Asked
from minillm.engine.batching.threaded import Busy, Failed
from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.serve import fields, prompts
from minillm.serve.apis.openai import BOOKKEEPING, json
from minillm.serve.apis.openai_completions import prompts as inputs
from minillm.serve.errors import Refusal, retry, too_long
from minillm.serve.fields import Body
from minillm.serve.models import Served
from minillm.serve.service import Service, key_of, record_of, unless_gone


class EmbeddingsBody(Body, kw_only=True):
    """Texts or ids, and what is to be made of them."""

    IDLE: ClassVar = BOOKKEEPING
    model: str | None = None
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    pooling: Literal["mean", "last"] = "mean"


async def create(service: Service, request: Request) -> Response:
    body, idle = fields.read(fields.parsed(await request.body()), EmbeddingsBody)
    service.open()
    served, record = service.models.find(body.model), record_of(request)
    width = served.llm.spec.hidden_size
    if body.dimensions not in (None, width):
        said = f"dimensions is {body.dimensions}, this model's vectors have {width}; leave it out"
        raise Refusal(400, said, "invalid_value", "dimensions")
    ids = await service.beside(lambda: _ids(served, body))
    tokens = sum(map(len, ids))
    lease = key_of(request).admit(tokens)
    try:
        vectors = await unless_gone(request, _vectors(served, ids, body.pooling, key_of(request).name))
    finally:
        lease.end(tokens)
    record.update(model=served.name, prompt=tokens, **({"idle": idle} if idle else {}))
    found = [{"object": "embedding", "index": at, "embedding": _encoded(each, body)} for at, each in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json({"object": "list", "data": found, "model": served.name, "usage": usage})


def _ids(served: Served, body: EmbeddingsBody) -> list[list[int]]:
    """The ids of each text. Raises Refusal."""
    found = []
    for each in inputs(body.input):
        ids = prompts.text(served.llm, each) if isinstance(each, str) else each
        if not each or max(ids) >= served.llm.spec.vocab_size:
            raise Refusal(400, "input has no tokens, or ids outside the vocabulary", "invalid_value", "input")
        if len(ids) > served.room - 1:
            raise too_long(len(ids), 0, served.room - 1)
        found.append(ids)
    return found


async def _vectors(served: Served, ids: list[list[int]], pooling: str, client: str) -> list[Tensor]:
    """A vector fp32 `[E]` for each text, computed among the requests of others."""
    readers = [Pool(served, len(each), pooling) for each in ids]
    tickets = []
    try:
        for each, reader in zip(ids, readers, strict=True):
            row = Completion(each, Sampling(), 0, asked=Asked(reader=reader.read))
            tickets.append(served.engine.submit(row, client=client))
        for ticket in tickets:
            async for _ in ticket.changes():
                pass
    except Busy as error:
        raise retry(503, str(error), 2, "overloaded") from None
    except Failed:
        raise Refusal(500, "the engine could not go on with this request", "engine_error") from None
    finally:
        for ticket in tickets:
            served.engine.cancel(ticket)
    return [reader.vector() for reader in readers]


class Pool:
    """Takes the hidden states of a text, in pieces, from the beginning on."""

    def __init__(self, served: Served, length: int, pooling: str):
        self.norm, self.length, self.pooling = served.llm.model.norm, length, pooling
        self.parts: dict[int, Tensor] = {}

    def read(self, start: int, x_TE: Tensor) -> None:
        """States from a position on, `[T, E]`, in the engine's thread. A mean needs their sums only."""
        if start == 0:  # from the beginning, perhaps once more
            self.parts.clear()
        h_TE = self.norm(x_TE[None])[0].float()
        self.parts[start] = h_TE.sum(0) if self.pooling == "mean" else h_TE[-1]

    def vector(self) -> Tensor:
        """fp32 `[E]` of length 1."""
        parts = [self.parts[start] for start in sorted(self.parts)]
        v_E = torch.stack(parts).sum(0) / self.length if self.pooling == "mean" else parts[-1]
        return (v_E / v_E.norm().clamp(min=1e-12)).cpu()


def _encoded(vector: Tensor, body: EmbeddingsBody) -> Any:
    """Numbers, or their bytes: little-endian fp32."""
    if body.encoding_format == "float":
        return vector.tolist()
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


ROUTES = [("POST", "/v1/embeddings", create)]
