"""Laws that need no reference: one sequence, however it is cut, cached or batched, gives one result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minillm.model.cache import Cache, LayerCache
from minillm.model.decoder import Decoder, next_token_loss
from minillm.ops import CPU, Ops, reference
from minillm.ops.visibility import Visibility
from minillm.spec import GQA, MLA, MLP, GatedMLP, Layer, LayerNorm, LinearScaling, MoE, Norm, QKNorm, Rope, Router
from minillm.spec import Decoder as Spec

EXACT = 3e-5  # fp32, sums of under 100 terms of size one in another order; the largest ever seen was 2.06e-5
MARGIN = 1e-4  # of an expert chosen over one not chosen: rounding must not decide


@st.composite
def attentions(draw: st.DrawFn, rope: Rope, norm: Norm) -> GQA | MLA:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    if draw(st.booleans()):
        ranks = draw(st.none() | st.integers(4, 12)), draw(st.integers(4, 12))  # the norm of one value is its sign
        sizes = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        return MLA(heads, *ranks, *sizes, rope, norm, score_factor=draw(st.floats(0.5, 2.0)))
    return GQA(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=8,
        rope=rope,
        window=draw(st.none() | st.integers(1, 12)),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.sampled_from((None, QKNorm(norm), QKNorm(norm, "all")))),
        clip=draw(st.none() | st.floats(0.5, 2.0)),
        scale=draw(st.none() | st.floats(0.1, 1.0)),
        softcap=draw(st.none() | st.floats(0.5, 5.0)),
        sinks=draw(st.booleans()),
    )


@st.composite
def ffns(draw: st.DrawFn) -> GatedMLP | MLP | MoE:
    if draw(st.booleans()):
        return draw(st.sampled_from((GatedMLP(20), MLP(20, "gelu", bias=True))))
    experts, score = draw(st.integers(2, 6)), draw(st.sampled_from(("softmax", "softmax_chosen", "sigmoid")))
    router = Router(experts, draw(st.integers(1, experts - 1)), score, renormalize=draw(st.booleans()))
    shared = draw(st.sampled_from((None, GatedMLP(6))))
    return MoE(router, draw(st.integers(3, 12)), shared=shared, shared_gate=shared is not None and draw(st.booleans()))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Small decoders whose layers differ in kind, heads, windows, norms and biases."""
    rope = Rope(
        dim=draw(st.sampled_from((4, 8))),
        theta=draw(st.sampled_from((10.0, 1e4))),
        layout=draw(st.sampled_from(("half", "interleaved"))),
    )
    rope = replace(rope, scaling=draw(st.sampled_from((None, LinearScaling(2.0)))))
    norm = Norm(1e-5)
    norms = st.sampled_from((None, norm, Norm(1e-5, offset=1.0, cast="after_weight"), LayerNorm(1e-5, affine=False)))
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        attention, ffn = draw(attentions(rope, norm)), draw(ffns())
        layers.append(Layer(norm, attention, draw(norms), ffn, draw(norms), draw(norms), parallel=draw(st.booleans())))
    scale, cap = draw(st.sampled_from((1.0, 4.0))), draw(st.none() | st.floats(1.0, 9.0))
    tied = draw(st.booleans())
    return Spec(31, 16, tuple(layers), norm, tied, context=64, embedding_scale=scale, logit_softcap=cap)


def build(spec: Spec, seed: int = 0, ops: Ops = CPU) -> Decoder:
    model = Decoder(spec, ops)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.dim() == 1))
    return model.eval()


def uncut(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of whole rows without a cache, where no choice of an expert is as good as a tie."""
    logits, routing = model(tokens, collect_routing=True)
    for layer, routed in zip(model.spec.layers, routing, strict=True):
        if routed is not None:
            best = routed.logits.topk(layer.ffn.router.top_k + 1).values
            assume((best[:, -2] - best[:, -1]).min() > MARGIN)
    return logits


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(31, shape, generator=torch.Generator().manual_seed(seed))


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
            assert held.k.shape[2] == min(total, layer.attention.window or total)
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
