"""Where a model's routers send the tokens of texts: the texts go through it in windows, and each token's choices are
noted once.

The windows are those of `minillm.perplexity`: behind the first of a text, a token is noted where it has at least
context - stride tokens before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minillm import spec
from minillm.engine.windows import sizes, windows
from minillm.llm import LLM
from minillm.model.moe import MoE
from minillm.ops.routing import Routing
from minillm.routes.measure import Picks, joined, picks

MAX_PICKS = 2**27  # choices that are kept, over all layers: some 16 bytes each with what goes with them

ROWS_AT_ONCE = 4096  # tokens of windows that go through the model together


class Recording(NamedTuple):
    """What one run chose, by the index of the layer."""

    ids: list[list[int]]  # of each text
    layers: dict[int, Picks]
    routers: dict[int, spec.Router]
    context: int
    stride: int
    dtype: str


def routers(decoder: spec.Decoder, name: str = "routes") -> dict[int, spec.Router]:
    """The routers of a model by layer. Raises ValueError where there are none."""
    found = {i: layer.ffn.router for i, layer in enumerate(decoder.layers) if isinstance(layer.ffn, spec.MoE)}
    if not found:
        raise ValueError(f"{name}: this model has no experts; give a mixture, such as --weights examples/demo_moe")
    return found


def encoded(llm: LLM, texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
    """The ids of each text, the first `max_tokens` of them. Raises ValueError for a text that has none, and for more
    than can be kept."""
    if llm.tokenizer is None:
        raise ValueError(f"{llm.folder}: no tokenizer.json or tokenizer.model, without which a text is no tokens")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"--max-tokens is {max_tokens}, it must be 1 or more")
    ids = [llm.tokenizer.encode(text)[:max_tokens] if text else [] for text in texts]
    if not all(ids):
        raise ValueError("a text is empty: it has no tokens to route; give another")
    if (largest := max(map(max, ids))) >= llm.spec.vocab_size:
        raise ValueError(f"token id {largest} is outside the vocabulary of {llm.spec.vocab_size}: not its tokenizer")
    kept = sum(map(len, ids)) * sum(router.top_k for router in routers(llm.spec).values())
    if kept > MAX_PICKS:
        raise ValueError(f"the texts make {kept:,} choices of experts, the limit is {MAX_PICKS:,}; give --max-tokens")
    return ids


def record(
    llm: LLM,
    ids: list[list[int]],
    context: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Recording:
    """The choices of all layers for texts of at least one token each. Raises ValueError for a model without experts."""
    found = routers(llm.spec)
    context, stride = sizes(llm.spec, context, stride)
    parts: dict[int, list[Picks]] = {layer: [] for layer in found}
    total, done = sum(map(len, ids)), 0
    for text in ids:
        for tokens_BT, count in _batches(torch.tensor(text, device=llm.device), context, stride):
            for layer, each in _routed(llm, tokens_BT, count, found).items():
                parts[layer].append(each)
            done += len(tokens_BT) * count
            progress(done, total)
    dtype = str(llm.model.dtype).removeprefix("torch.")
    layers = {layer: joined(each) for layer, each in parts.items()}
    return Recording(ids, layers, found, context, stride, dtype)


def _batches(tokens: Tensor, context: int, stride: int) -> Iterator[tuple[Tensor, int]]:
    """Windows of one length together, `[B, T]`, and how many of their last tokens none before them has held."""
    planned = windows(len(tokens) + 1, context, stride)
    for (_, count), alike in itertools.groupby(planned, lambda window: (window[1] - window[0], window[2])):
        held = list(alike)
        size = max(ROWS_AT_ONCE // context, 1)
        for at in range(0, len(held), size):
            yield torch.stack([tokens[first:last] for first, last, _ in held[at : at + size]]), count


@torch.inference_mode()
def _routed(llm: LLM, tokens_BT: Tensor, count: int, found: dict[int, spec.Router]) -> dict[int, Picks]:
    """What each layer chose for the last `count` tokens of each row, row by row."""
    _, routing = llm.model(tokens_BT, last_only=True, collect_routing=True)
    rows, noted = len(tokens_BT), {}
    for layer, router in found.items():
        routed = routing[layer]
        last = (part.unflatten(0, (rows, -1))[:, -count:].flatten(0, 1) for part in routed[:3])
        moe = llm.model.layers[layer].ffn
        assert isinstance(moe, MoE)
        noted[layer] = picks(Routing(*last), moe.router.bias, router)
    return noted
