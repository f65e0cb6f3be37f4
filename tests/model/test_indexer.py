"""Indexers: their choice is the one that loops make, and the same however a sequence is cut, cached or batched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.engine.batching.engine import Engine
from minillm.engine.batching.proposers import Lookup
from minillm.engine.batching.running import generate
from minillm.engine.completion import Timings
from minillm.model.cache import Cache
from minillm.model.costs import cached_values, cached_values_held, cached_values_seen
from minillm.model.decoder import Decoder
from minillm.model.pools import Pools, bytes_of
from minillm.ops import sparse
from minillm.spec import GQA, KV, MLA, BlockIndexer, GatedMLP, Indexer, Layer, LayerNorm, Norm, Rope
from minillm.spec import Decoder as Spec
from tests.helpers.loops import always, contiguous, listening, requests, texts
from tests.helpers.specs import EXACT, build, random_tokens

NORM, ROPE = Norm(1e-5), Rope(4, 100.0, "interleaved")
MARGIN = 1e-4  # of a key chosen over one not chosen: rounding must not decide
LENGTH = 30


def spec(indexer: Indexer, blocks: BlockIndexer) -> Spec:
    """A layer of each kind: an indexer, its choice once more, blocks, and none."""
    latent = MLA(4, 10, 8, 6, 5, ROPE, NORM, indexer=indexer)
    grouped = GQA(4, 2, 8, ROPE, kv=KV(indexer=blocks))
    attentions = (latent, replace(latent, indexer=0), grouped, replace(grouped, kv=KV()))
    return Spec(31, 16, tuple(Layer(NORM, each, NORM, GatedMLP(20)) for each in attentions), NORM, False, context=64)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    layout = draw(st.sampled_from(("half", "interleaved")))
    indexer = Indexer(
        draw(st.integers(1, 16)), draw(st.integers(4, 8)), draw(st.integers(1, 9)), LayerNorm(0.1), layout
    )
    size, count = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    local = draw(st.integers(0, min(2, count)))
    return spec(indexer, BlockIndexer(draw(st.integers(4, 8)), size, count, Norm(0.1), local))


SPEC = spec(Indexer(8, 6, 5, LayerNorm(0.1)), BlockIndexer(6, 3, 2, Norm(0.1)))


@torch.no_grad()
def uncut(model: Decoder, tokens: Tensor) -> Tensor:
    """Logits of whole rows, where no choice is as good as a tie but for scores of exactly 0, which come again."""
    margins, plain = [1.0], sparse.best

    def best(scores: Tensor, count: int) -> Tensor:
        if count < scores.shape[-1]:
            first, second = scores.topk(count + 1, dim=-1).values[..., -2:].unbind(-1)
            apart = torch.where((first == second) | second.isinf(), 1.0, first - second)
            margins.append(float(apart.min()))
        return plain(scores, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "best", best)
        logits = model(tokens)
    assume(min(margins) > MARGIN)
    return logits


@given(st.lists(st.sampled_from((-1.0, 0.0, 0.5, 2.0, float("-inf"))), min_size=1, max_size=9), st.integers(1, 10))
def test_the_best_are_the_highest_and_of_equals_the_first(scores: list[float], count: int) -> None:
    order = sorted((i for i, each in enumerate(scores) if each > float("-inf")), key=lambda i: (-scores[i], i))
    assert sparse.best(torch.tensor(scores), count).nonzero().flatten().tolist() == sorted(order[:count])


def spans(batch: int, count: int, past: int) -> tuple[Tensor, Tensor]:
    """What queries behind `past` positions see, in each row from one position later on."""
    last = torch.arange(past, past + count).expand(batch, -1)
    return torch.minimum(torch.arange(batch)[:, None].expand_as(last), last), last


@pytest.mark.parametrize("past", [0, 7])
def test_keys_are_chosen_as_loops_choose_them(past: int) -> None:
    made = torch.Generator().manual_seed(past)
    q, w, k = (torch.randn(shape, generator=made).double() for shape in ((2, 5, 3, 4), (2, 5, 3), (2, past + 5, 4)))
    first, last = spans(2, 5, past)
    found = sparse.best_keys(q, w, k, first, last, 4)
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        seen = range(int(first[b, t]), int(last[b, t]) + 1)
        score = {s: float(sum(w[b, t, h] * max(float(q[b, t, h] @ k[b, s]), 0) for h in range(3))) for s in seen}
        assert found[b, 0, t].nonzero().flatten().tolist() == sorted(sorted(seen, key=lambda s: -score[s])[:4])


@pytest.mark.parametrize(("size", "count", "local"), [(3, 2, 1), (1, 4, 0), (2, 3, 2), (4, 1, 1)])
def test_blocks_are_chosen_as_loops_choose_them(size: int, count: int, local: int) -> None:
    made = torch.Generator().manual_seed(size)
    q, k = torch.randn(2, 5, 2, 4, generator=made), torch.randn(2, 12, 4, generator=made)
    first, last = spans(2, 5, 7)
    found = sparse.best_blocks(q, k, first, last, size, count, local)
    for b, h, t in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(5)).tolist():
        begin, end = int(first[b, t]), int(last[b, t]) + 1
        blocks = [range(at, min(at + size, end)) for at in range(begin, end, size)]
        best = sorted(blocks, key=lambda block: -max(float(q[b, t, h] @ k[b, s]) for s in block))
        kept = [*blocks[len(blocks) - local :], *(each for each in best if each not in blocks[len(blocks) - local :])]
        assert found[b, h, t].nonzero().flatten().tolist() == sorted(s for each in kept[:count] for s in each)


@settings(max_examples=12)
@given(specs(), st.lists(st.integers(1, 9), min_size=1, max_size=5))
@torch.no_grad()
def test_in_any_pieces(spec: Spec, chunks: list[int]) -> None:
    """At once, in pieces, token by token, and where only the device knows the position."""
    model, total = build(spec), sum(chunks)
    tokens = random_tokens(2, total)
    whole = uncut(model, tokens)
    for cuts in (chunks, [1] * total):
        cache = Cache(spec, 2, total + 3, torch.float32)
        pieces = [model(piece, cache) for piece in tokens.split(cuts, dim=1)]
        assert (torch.cat(pieces, dim=1) - whole).abs().max() <= EXACT
    cache = Cache(spec, 2, total + 3, torch.float32)
    for at in range(total):
        logits = model.decode_at(tokens[:, at], torch.full((2,), at), cache)
        assert (logits - whole[:, at]).abs().max() <= EXACT


@settings(max_examples=8)
@given(specs(), st.lists(st.integers(1, 14), min_size=2, max_size=3), st.integers(1, 6))
@torch.no_grad()
def test_neighbours_in_a_batch_change_nothing(spec: Spec, lengths: list[int], steps: int) -> None:
    """Blocks begin where a row does, not where its padding does."""
    model, width = build(spec), max(lengths)
    rows = [random_tokens(length + steps, seed=i) for i, length in enumerate(lengths)]
    padding = [width - length for length in lengths]
    tokens = torch.stack([torch.nn.functional.pad(row, (pad, 0)) for pad, row in zip(padding, rows, strict=True)])
    cache = Cache(spec, len(rows), width + steps, torch.float32, padding=padding)
    joined = torch.cat([model(piece, cache) for piece in tokens.split([width, *[1] * steps], dim=1)], dim=1)
    for index, (pad, row) in enumerate(zip(padding, rows, strict=True)):
        assert (joined[index, pad:] - uncut(model, row[None])[0]).abs().max() <= EXACT


@torch.no_grad()
def test_documents_of_a_row_do_not_see_each_other() -> None:
    model, rows = build(SPEC), [random_tokens(length, seed=length) for length in (17, 13)]
    starts = torch.tensor([[0] * 17 + [17] * 13])
    together = model.logits(model.hidden(torch.cat(rows)[None], starts_BT=starts))
    alone = torch.cat([model(row[None]) for row in rows], dim=1)
    assert (together - alone).abs().max() <= EXACT


@torch.no_grad()
def test_few_queries_at_a_time_are_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build(SPEC), random_tokens(2, LENGTH)
    whole = model(tokens)
    monkeypatch.setattr(sparse, "AT_ONCE", 1000)
    assert (model(tokens) - whole).abs().max() <= EXACT


@pytest.mark.parametrize("compiled", [True, False])
def test_the_engine_gives_what_a_loop_gives(compiled: bool) -> None:
    """In blocks, beside others, with prefixes that are there, a prompt that several share, guesses right and wrong."""
    model, _ = listening(SPEC, compiled=compiled)
    text = random_tokens(48, seed=3).tolist()
    prompts = [text[:40], text[:1], text[:33], text[30:31], text[:40], text[:40]]
    alone, blocks, guessed = (requests(prompts, 20, temperature=0.8) for _ in range(3))
    for each in alone:
        contiguous(model, each)
    engine = Engine(model, 160, max_rows=3, budget=20)
    going = [engine.add(each) for each in blocks]
    while engine.busy:
        engine.step()
    assert any(each.cached for each in going)
    list(generate(model, guessed, timings := Timings(), guesser=lambda *_: always(Lookup(2), 3)))
    assert texts(blocks) == texts(guessed) == texts(alone)
    assert timings.drafted_tokens > timings.accepted_tokens > 0


def test_memory_is_what_is_said() -> None:
    """The keys of an indexer lie beside those of attention; a shared choice takes nothing."""
    assert cached_values(SPEC) == (8 + 4 + 6) + (8 + 4) + (2 * 16 + 6) + 2 * 16
    cache, device = Cache(SPEC, 3, 50, torch.bfloat16), torch.device("cpu")

    def held(layer: Any) -> int:
        tensors = [each for part in (layer, layer.index) for each in vars(part).values() if isinstance(each, Tensor)]
        return sum(each.nbytes for each in tensors)

    assert sum(map(held, cache.layers)) == 2 * 3 * 50 * cached_values(SPEC)
    pools = Pools(SPEC, {None: 7}, 16, torch.bfloat16, device)
    assert sum(map(held, pools.layers)) == 7 * bytes_of(SPEC, 16, torch.bfloat16)[None]
    assert bytes_of(SPEC, 16, torch.bfloat16)[None] == 2 * 16 * cached_values(SPEC)
    seen = (8 + 4) * 5 * 2 + 2 * 16 * 6 + 2 * 16 * 100  # of 5 keys, twice; of 2 blocks of 3; of all
    assert cached_values_seen(SPEC, 100) == seen + (6 + 6) * 100
    assert cached_values_held(SPEC, 100) == 100 * cached_values(SPEC)


def test_a_fork_takes_an_indexers_keys_along() -> None:
    pools = Pools(SPEC, {None: 3}, 16, torch.float32, torch.device("cpu"))
    for layer in pools.layers:
        for rows in (layer.index, getattr(layer, "rows", None)):
            if rows is not None:
                (rows if isinstance(rows, Tensor) else rows.rows).normal_()
    pools.copy(None, 0, 2)
    for layer in (pools.layers[0], pools.layers[2]):
        assert torch.equal(layer.index.rows[:, :16], layer.index.rows[:, 32:])
