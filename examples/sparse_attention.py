"""Sparse attention with numbers: what it costs to see few keys, how they are chosen, and what it saves.

    python examples/sparse_attention.py [--plot sparse.png]

An indexer learns to guess which keys attention would weigh most, all heads together. First the best that it could do:
the demo model, of whose keys each query sees only those that its own attention weighs most, against keys at random and
the last ones. Then the formula, against one that is written out. Then sizes: those of GLM-5.2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import study
import torch
from torch import Tensor

import minillm
from minillm.families import resolve
from minillm.model.costs import attention_flops, cached_values_seen
from minillm.ops import REFERENCE, reference, sparse
from minillm.ops.visibility import Visibility
from minillm.report import picture
from minillm.report.observe import attention_weights
from minillm.spec import MLA, Decoder
from story_grammar import story

COUNTS, STORIES, TOKENS = (1, 2, 4, 8, 16, 32, 64), 8, 200
CONTEXTS = [2**n for n in range(9, 18)]
Scores = Callable[[Tensor], Tensor]  # weights of all heads `[B, H, T, S]` -> what chooses `[B, T, S]`


def by_weight(weights: Tensor) -> Tensor:
    """What the paper has an indexer learn: the sum over heads."""
    return weights.sum(1)


def by_chance(weights: Tensor) -> Tensor:
    return torch.rand(weights[:, 0].shape, generator=torch.Generator().manual_seed(0))


def the_last(weights: Tensor) -> Tensor:
    return torch.arange(weights.shape[-1]).expand_as(weights[:, 0]).float()


def narrowed(count: int, scores: Scores) -> Callable[..., Tensor]:
    """Attention over the `count` keys that score highest; the query's own is always one of them."""

    def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visibility, *rest: Any) -> Tensor:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        found = scores(attention_weights(q, k, v, visible, *rest)).masked_fill(~seen, float("-inf"))
        found.diagonal(dim1=-2, dim2=-1).fill_(float("inf"))
        chosen = replace(visible, chosen=sparse.best(found, count).unsqueeze(1))
        return reference.attention(q, k, v, chosen, *rest)

    return attend


def losses(model: Any, texts: Tensor) -> dict[str, list[float]]:
    """Nats per token with so many keys, chosen in each way."""
    found: dict[str, list[float]] = {}
    attentions = [layer.attention for layer in model.layers]
    for name, scores in (("weighed most", by_weight), ("the last", the_last), ("at random", by_chance)):
        for count in COUNTS:
            for each in attentions:
                each.ops = replace(REFERENCE, attention=narrowed(count, scores))
            found.setdefault(name, []).append(float(model.loss(texts)))
    for each in attentions:
        each.ops = REFERENCE
    return found


def by_hand(q: Tensor, weights: Tensor, k: Tensor, count: int) -> list[list[int]]:
    """The choice of each query, by the formula and without a tensor that holds more than one score."""
    chosen = []
    for t in range(len(q)):
        score = [
            sum(float(w) * max(float(head @ k[s]), 0.0) for head, w in zip(q[t], weights[t], strict=True))
            for s in range(t + 1)
        ]
        chosen.append(sorted(sorted(range(t + 1), key=lambda s: -score[s])[:count]))
    return chosen


def agrees() -> bool:
    made = torch.Generator().manual_seed(0)
    q, weights, k = (torch.randn(shape, generator=made) for shape in ((20, 4, 8), (20, 4), (20, 8)))
    last = torch.arange(20)[None]
    found = sparse.best_keys(q[None], weights[None], k[None], torch.zeros_like(last), last, 5)[0, 0]
    return [row.nonzero().flatten().tolist() for row in found] == by_hand(q, weights, k, 5)


def dense(decoder: Decoder) -> Decoder:
    layers = []
    for layer in decoder.layers:
        assert isinstance(layer.attention, MLA)
        layers.append(replace(layer, attention=replace(layer.attention, indexer=None)))
    return replace(decoder, layers=tuple(layers))


def step(decoder: Decoder, past: int) -> tuple[float, float]:
    """What one more token reads of the cache, in MB at two bytes, and the operations of its attention, in G."""
    return 2 * cached_values_seen(decoder, past) / 1e6, attention_flops(decoder, 1, past) / 1e9


def draw(path: Path, found: dict[str, list[float]], whole: float, decoder: Decoder) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    one, two = figure.subplots(1, 2)
    for (name, values), colour in zip(found.items(), picture.COLOURS, strict=False):
        one.plot(COUNTS, values, marker="o", markersize=3, label=name, color=colour)
    one.axhline(whole, color="black", linewidth=0.8, linestyle="--", label="all keys")
    one.set(xlabel="keys that a query sees", ylabel="nats per token", xscale="log", title="demo model, 200 tokens")
    for made, name, colour in (
        (dense(decoder), "all keys", picture.COLOURS[1]),
        (decoder, "2048 keys", picture.COLOURS[0]),
    ):
        two.plot(CONTEXTS, [step(made, n)[0] for n in CONTEXTS], label=name, color=colour)
    two.set(xlabel="positions", ylabel="MB read of the cache for a token", xscale="log", yscale="log", title="GLM-5.2")
    for axes in (one, two):
        axes.title.set_fontsize(10)
        axes.legend(fontsize=8)
    picture.save(figure, path)


@torch.no_grad()
def measure(_: argparse.Namespace) -> study.Draw:
    print(f"20 queries choose the keys that the formula says: {agrees()}")
    llm, rng = minillm.load(dtype="float32", kernels="reference"), Random(0)
    ids = [llm.tokenizer.encode("".join(story(rng)[1] for _ in range(3)))[:TOKENS] for _ in range(STORIES)]
    texts = torch.tensor(ids)
    whole, found = float(llm.model.loss(texts)), losses(llm.model, texts)
    print(f"all of up to {TOKENS} keys: {whole:.3f} nats per token")
    for index, count in enumerate(COUNTS):
        print(f"{count:4} keys: " + ", ".join(f"{name} {values[index]:6.3f}" for name, values in found.items()))
    kinds = [*["full"] * 3, *["shared", "shared", "shared", "full"] * 18, *["shared"] * 3]
    decoder, _, _ = resolve({"model_type": "glm_moe_dsa", "indexer_types": kinds})
    for past in (2048, 16384, 131072):
        (few, less), (every, more) = step(decoder, past), step(dense(decoder), past)
        print(
            f"{past:7,} positions: a token reads {every:8.1f} MB and computes {more:7.1f} G with all keys, "
            f"{few:6.1f} MB and {less:5.1f} G with 2048"
        )
    return lambda path: draw(path, found, whole, decoder)


if __name__ == "__main__":
    study.main(study.parser(__doc__, "both figures"), measure)
