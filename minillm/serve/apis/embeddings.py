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

from minillm.engine.asked import Asked as Read
from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.serve import fields, prompts
from minillm.serve.answers.reader import Reader
from minillm.serve.apis.openai import BOOKKEEPING, json
from minillm.serve.apis.openai_completions import prompts as inputs
from minillm.serve.asked import Asked
from minillm.serve.errors import Refusal, too_long
from minillm.serve.fields import Body
from minillm.serve.models import Served
from minillm.serve.service import PLAIN, Groups, Service, whole


class EmbeddingsBody(Body, kw_only=True):
    """Texts or ids, and what is to be made of them."""

    IDLE: ClassVar = BOOKKEEPING
    model: str | None = None
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    pooling: Literal["mean", "last"] = "mean"


async def create(service: Service, request: Request) -> Response:
    body, idle = fields.read(await service.parsed(request), EmbeddingsBody)
    pools: list[Pool] = []

    def rows(served: Served) -> Groups:
        width = served.llm.spec.hidden_size
        if body.dimensions not in (None, width):
            said = f"dimensions is {body.dimensions}, this model's vectors have {width}; leave it out"
            raise Refusal(400, said, "invalid_value", "dimensions")
        found = _ids(served, body)
        pools.extend(Pool(served, len(each), body.pooling) for each in found)
        made = [Read(reader=pool.read, adapter=served.llm.adapter) for pool in pools]
        texts = zip(found, made, strict=True)
        return [([Completion(ids, Sampling(), 0, asked=each)], [Reader(PLAIN, "")]) for ids, each in texts]

    job = await service.start(request, Asked(model=body.model, parse=False, idle=idle), rows)
    await whole(request, job)
    vectors = [pool.vector() for pool in pools]
    found = [{"object": "embedding", "index": at, "embedding": _encoded(each, body)} for at, each in enumerate(vectors)]
    tokens = job.usage()["prompt"]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json({"object": "list", "data": found, "model": job.served.name, "usage": usage})


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
