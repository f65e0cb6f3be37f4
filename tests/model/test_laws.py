"""Laws that need no reference: one sequence, however it is cut, cached or batched, gives one result."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.model.cache import Cache, LayerCache
from minillm.model.decoder import next_token_loss
from minillm.ops import reference
from minillm.ops.visibility import Visibility
from minillm.spec import GQA, GatedMLP, Layer, Norm, Rope
from minillm.spec import Decoder as Spec
from tests.helpers.specs import EXACT, build, random_tokens, specs, uncut


@settings(max_examples=40)
@given(specs(), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 5))
@torch.no_grad()
def test_prefill_is_chunked_is_token_by_token(spec: Spec, chunks: list[int], slack: int) -> None:
    """Any way of cutting a sequence through the cache, rings included, equals the whole without a cache."""
    model, total = build(spec), sum(chunks)
    tokens = random_tokens(2, total)
    whole = uncut(model, tokens)
    for cuts in (chunks, [1] * total):
        cache = Cache(spec, 2, total + slack, torch.float32)
        pieces = [model(piece, cache) for piece in tokens.split(cuts, dim=1)]
        assert (torch.cat(pieces, dim=1) - whole).abs().max() <= EXACT


@settings(max_examples=40)
@given(specs(), st.lists(st.integers(1, 14), min_size=2, max_size=4), st.integers(1, 8))
@torch.no_grad()
def test_neighbours_in_a_batch_change_nothing(spec: Spec, lengths: list[int], steps: int) -> None:
    """Rows of several lengths, padded on the left, prefilled and decoded together, equal each row alone."""
    model, width = build(spec), max(lengths)
    rows = [random_tokens(length + steps, seed=i) for i, length in enumerate(lengths)]
    padding = [width - length for length in lengths]
    cache = Cache(spec, len(rows), width + steps, torch.float32, padding=padding)
    padded = [torch.cat((torch.zeros(pad, dtype=torch.long), row)) for pad, row in zip(padding, rows, strict=True)]
    tokens = torch.stack(padded)
    together = [model(tokens[:, :width], cache)]
    together += [model(tokens[:, at : at + 1], cache) for at in range(width, width + steps)]
    joined = torch.cat(together, dim=1)
    for index, (pad, row) in enumerate(zip(padding, rows, strict=True)):
        assert (joined[index, pad:] - uncut(model, row[None])[0]).abs().max() <= EXACT


@settings(max_examples=40)
@given(specs(), st.integers(1, 16), st.integers(0, 6), st.integers(0, 5))
@torch.no_grad()
def test_positions_that_only_the_device_knows(spec: Spec, total: int, lag: int, slack: int) -> None:
    """Each row is at one of its own, the second behind the first, and gets what it gets alone, token by token."""
    model, tokens = build(spec), random_tokens(2, total)
    uncut(model, tokens)
    caches = [Cache(spec, batch, total + slack, torch.float32) for batch in (1, 1, 2)]
    alone = torch.stack([torch.cat([model(token[None, None], cache)[0] for token in row])
                         for row, cache in zip(tokens, caches[:2], strict=True)])  # fmt: skip
    for at in range(total + lag):
        rows, position = torch.arange(2), torch.tensor([min(at, total - 1), max(at - lag, 0)])
        logits = model.decode_at(tokens[rows, position], position, caches[2])
        assert (logits - alone[rows, position]).abs().max() <= EXACT


@settings(max_examples=20)
@given(specs(), st.integers(2, 12))
def test_the_loss_is_that_of_the_logits(spec: Spec, total: int) -> None:
    """And so are its gradients."""
    model, tokens = build(spec), random_tokens(2, total)
    losses = model.loss(tokens), next_token_loss(uncut(model, tokens), tokens)
    assert abs(losses[0] - losses[1]) <= EXACT
    ours, theirs = (torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) for loss in losses)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).abs().max() <= EXACT


@settings(max_examples=30)
@given(specs(), st.integers(2, 30))
@torch.no_grad()
def test_rotating_cache_is_full_cache_with_a_mask(spec: Spec, total: int) -> None:
    """The ring holds min(window, capacity) slots, and decoding through it equals the masked whole."""
    model, tokens = build(spec), random_tokens(1, total)
    cache = Cache(spec, 1, total, torch.float32)
    for layer, held in zip(spec.layers, cache.layers, strict=True):
        if isinstance(held, LayerCache):
            assert held.k.shape[2] == min(total, int(layer.attention.window or total))
    steps = [model(tokens[:, at : at + 1], cache) for at in range(total)]
    assert (torch.cat(steps, dim=1) - uncut(model, tokens)).abs().max() <= EXACT


@pytest.mark.parametrize("window", [1, 3, None])
@torch.no_grad()
def test_a_window_sees_itself_and_the_positions_before(window: int | None) -> None:
    """Changing a token reaches exactly the outputs whose window holds it (one layer)."""
    norm = Norm(1e-5)
    attention = GQA(2, 1, 8, Rope(8, 100.0), window=window)
    model = build(Spec(31, 16, (Layer(norm, attention, norm, GatedMLP(20)),), norm, tied=False, context=64))
    tokens = random_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 31
    moved = (model(tokens) != model(changed)).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == list(range(5, 12 if window is None else 5 + window))


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_attention_is_its_formula(kv_heads: int, group: int, queries: int, extra: int, masked: bool) -> None:
    """softmax(q kᵀ / sqrt(D)) v with repeated kv heads, in fp64, against the op: GQA is MHA with repeated heads."""
    generator = torch.Generator().manual_seed(queries * 100 + extra)
    keys = queries + extra if masked else queries
    q = torch.randn(2, kv_heads * group, queries, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, keys, 8, generator=generator)
    hidden = torch.arange(keys) > torch.arange(keys - queries, keys)[:, None]
    k64, v64 = (t.repeat_interleave(group, dim=1).double() for t in (k, v))
    scores = (q.double() @ k64.transpose(-1, -2) / 8**0.5).masked_fill(hidden, float("-inf"))
    expected = scores.softmax(-1) @ v64
    found = reference.attention(q, k, v, Visibility(keys - queries, queries, None, None, q.device))
    assert (found - expected).abs().max() <= 1e-5
