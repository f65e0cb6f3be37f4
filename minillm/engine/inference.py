"""Prefill and decode as plain functions over a preallocated cache: for a loop of one's own, without the engine.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.engine import graphs
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder

# Long prompts go through in pieces, so that masks and activations stay bounded.
PREFILL_CHUNK = 2048


def prefill(model: Decoder, prompts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Fill an empty cache with prompts, aligned at their end by the cache's padding; returns the logits `[B, V]` that
    follow each."""
    width = max(map(len, prompts))
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    tokens_BT = torch.tensor(rows, device=cache.device)
    cache.prompt_length = width
    for chunk in tokens_BT.split(PREFILL_CHUNK, dim=1):
        logits_B1V = model(chunk, cache, last_only=True)
    return logits_B1V[:, -1]


def decode(model: Decoder, tokens: Sequence[int] | Tensor, cache: Cache) -> Tensor:
    """One token per row, int64 `[B]` -> the logits `[B, V]` that follow, until the next call; a step is recorded once
    where that can be."""
    tokens_B = torch.as_tensor(tokens, device=cache.device)
    if cache.graph is None and (record := graphs.recorder(model)):
        cache.graph = graphs.DecodeGraph(model, record)
    return cache.graph(tokens_B, cache) if cache.graph else graphs.step(model, tokens_B, cache)
