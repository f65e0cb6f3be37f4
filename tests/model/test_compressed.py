"""Streams that are mixed, and attention over entries, by their formulas in fp64; and that what is kept lies by its
position."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm.model.cache import Cache
from minillm.model.compressed.entries import Pooled
from minillm.model.compressed.rows import EntryPool
from minillm.model.decoder import Decoder
from minillm.model.residual.streams import HyperConnection, HyperStreams, balanced
from minillm.ops import REFERENCE
from minillm.spec import (
    ClampedSwiGLU,
    Compressed,
    Entries,
    EntryIndexer,
    GatedMLP,
    HyperConnections,
    Layer,
    MoE,
    Norm,
    Rope,
    Router,
)
from minillm.spec import Decoder as Spec
from minillm.tune import learner
from tests.helpers import tiny
from tests.helpers.specs import EXACT, build, random_tokens

SIZE, COUNT = 5, 3
PLAIN, NORM = Norm(1e-6, affine=False), Norm(1e-5, cast="after_weight")
STREAMS = HyperConnections(COUNT, PLAIN, rounds=3, eps=1e-2)
ROPE, WINDOW, LENGTH = Rope(4, 50.0, "interleaved"), 7, 23
INDEXER = EntryIndexer(3, 6, 2)
KINDS: tuple[Entries | None, ...] = (None, Entries(5, 8, NORM), Entries(3, 8, NORM, True, INDEXER))


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    for at, parameter in enumerate(module.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(at)).double()
    return module


@functools.cache
def model(hashed: bool = True, choosing: bool = True) -> Decoder:
    """A layer of each kind; where nothing is chosen no rounding can choose otherwise."""
    plain = Compressed(4, 8, 6, ROPE, WINDOW, NORM, 2, 5)
    activation = ClampedSwiGLU(1.0, 0.7, 0.0)
    kinds = KINDS if choosing else (*KINDS[:2], replace(KINDS[2], indexer=replace(INDEXER, top_k=64)))
    moe = MoE(Router(5, 2 if choosing else 5, "sqrt_softplus", True, 1.5), 6, activation, GatedMLP(6, activation))
    ffns = (replace(moe, hashed=31) if hashed else moe, moe, GatedMLP(9, activation))
    layers = (Layer(NORM, replace(plain, entries=each), NORM, ffn) for each, ffn in zip(kinds, ffns, strict=True))
    made = build(Spec(31, 16, tuple(layers), NORM, False, context=64, streams=STREAMS))
    if hashed:
        table = torch.rand(31, 5, generator=torch.Generator().manual_seed(5)).topk(2 if choosing else 5).indices
        made.layers[0].ffn.router.table.data.copy_(table)
    return made


@torch.no_grad()
def test_a_part_sees_a_mix_and_all_streams_take_in_what_it_makes() -> None:
    """One number after the other, as the formulas are written."""
    made, x, y = drawn(HyperConnection(STREAMS, SIZE, REFERENCE)), torch.randn(COUNT, SIZE).double(), torch.randn(SIZE)
    y = y.double()
    flat = x.flatten()
    t = made.mix @ (flat / (flat.square().mean() + 1e-6).sqrt())
    one, two = t[:COUNT] * made.scale[0] + made.shift[:COUNT], t[COUNT : 2 * COUNT] * made.scale[1]
    a, b = torch.sigmoid(one) + 1e-2, 2 * torch.sigmoid(two + made.shift[COUNT : 2 * COUNT])
    c = [
        [t[(2 + i) * COUNT + j] * made.scale[2] + made.shift[(2 + i) * COUNT + j] for j in range(COUNT)]
        for i in range(COUNT)
    ]
    c = [[math.exp(each) / sum(math.exp(other) for other in row) + 1e-2 for each in row] for row in c]
    for turn in range(5):  # columns, rows, columns, rows, columns
        if turn % 2:
            c = [[each / (sum(row) + 1e-2) for each in row] for row in c]
        else:
            sums = [sum(row[j] for row in c) + 1e-2 for j in range(COUNT)]
            c = [[row[j] / sums[j] for j in range(COUNT)] for row in c]
    given_, mixed = made(x[None, None])
    assert (given_ - sum(a[i] * x[i] for i in range(COUNT))).abs().max() < 1e-5  # W and the norm are in fp32
    wanted = torch.stack([b[j] * y + sum(c[i][j] * x[i] for i in range(COUNT)) for j in range(COUNT)])
    assert (mixed(y[None, None])[0, 0] - wanted).abs().max() < 1e-5
    end = drawn(HyperStreams(STREAMS, SIZE, REFERENCE))
    shares = torch.sigmoid(end.mix @ (flat / (flat.square().mean() + 1e-6).sqrt()) * end.scale + end.shift) + 1e-2
    assert (end.merged(x[None, None])[0, 0] - shares @ x).abs().max() < 1e-5
    assert torch.equal(end.parted(y[None, None])[0, 0], y.expand(COUNT, -1))


@torch.no_grad()
def test_streams_that_are_not_mixed_are_added_to() -> None:
    made = drawn(HyperConnection(replace(STREAMS, rounds=0, most=1.3), SIZE, REFERENCE))
    x, y = torch.randn(COUNT, SIZE).double(), torch.randn(SIZE).double()
    t = made.mix @ (x.flatten() / (x.square().mean() + 1e-6).sqrt())
    one, two = ((t * made.scale.repeat_interleave(COUNT) + made.shift).sigmoid()).split(COUNT)
    given_, mixed = made(x[None, None])
    assert (given_ - sum((one[i] + 1e-2) * x[i] for i in range(COUNT))).abs().max() < 1e-5
    wanted = torch.stack([(1.3 * two[j] + 1e-2) * y + x[j] for j in range(COUNT)])
    assert (mixed(y[None, None])[0, 0] - wanted).abs().max() < 1e-5


@given(st.integers(0, 2**31))
def test_nothing_grows(seed: int) -> None:
    """Rows and columns sum to 1 after enough rounds, whatever they begin as, and so do those of products."""
    made = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(seed)).double().softmax(-1) + 1e-6
    total = torch.eye(4).double()
    for each in balanced(made, 60, 0.0):
        total = total @ each
    assert (total.sum(0) - 1).abs().max() < 1e-6
    assert (total.sum(1) - 1).abs().max() < 1e-3  # which were divided before


@torch.no_grad()
def test_an_entry_is_a_mean_of_each_value() -> None:
    """Of its own positions and those before, each with matrices of their own, where it overlaps."""
    spec = Entries(2, 3, Norm(1e-6), True)
    made, x = drawn(Pooled(spec, 3, SIZE, REFERENCE)), torch.randn(4, SIZE).double()
    kv, gate = made.kv_gate.weight[:6], made.kv_gate.weight[6:]
    for missing in (False, True):
        total = torch.zeros(3).double()
        for d in range(3):
            rows = [(j, d if j < 2 else 3 + d) for j in range(2 if missing else 0, 4)]
            scores = [(gate[row] @ x[j] + made.place[j % 2, row]).item() for j, row in rows]
            shares = torch.tensor(scores).softmax(0).double()
            total[d] = sum(share * (kv[row] @ x[j]) for share, (j, row) in zip(shares, rows, strict=True))
        wanted = total / (total.square().mean() + 1e-6).sqrt() * made.norm.weight
        gone = torch.tensor([[[missing, missing, False, False]]])
        assert (made(made.kv_gate(x)[None, None], gone)[0, 0] - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_what_a_query_sees() -> None:
    """Changing a token changes what stands at its position and behind, and nothing before it."""
    made, tokens = model(), random_tokens(1, LENGTH)
    whole = made(tokens)
    for at in range(0, LENGTH, 4):
        other = tokens.clone()
        other[0, at] = (other[0, at] + 1) % 31
        changed = (made(other) - whole).abs().amax(-1)[0]
        assert changed[:at].max() == 0 if at else True
        assert changed[at] > 0
        assert changed[-1] > 0, "entries reach back as far as there are any"


@torch.no_grad()
@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 9))
def test_in_any_pieces_through_the_cache(pieces: list[int], padding: int) -> None:
    made, total = model(choosing=False), sum(pieces)
    rows = [random_tokens(1, total, seed=1), random_tokens(1, max(total - padding, 1), seed=2)]
    left = total - rows[1].shape[1]
    together = torch.cat((rows[0], torch.nn.functional.pad(rows[1], (left, 0))))
    cache = Cache(made.spec, 2, total + 3, torch.float32, padding=[0, left])
    found = torch.cat([made(piece, cache) for piece in together.split(pieces, dim=1)], dim=1)
    assert (found[0] - made(rows[0])[0]).abs().max() <= EXACT
    assert (found[1, left:] - made(rows[1])[0]).abs().max() <= EXACT


@pytest.mark.parametrize("span", [1, 3, 4, 6, 16, 20, 128])
def test_entries_of_a_block_have_places_of_their_own(span: int) -> None:
    """An entry lies in the block of its last position, whatever divides what."""
    pool = EntryPool(Entries(span, 2, NORM), 40, 16, torch.float32, torch.device("cpu"))
    last = torch.arange(40 * 16 // span) * span + span - 1
    slots = pool.slot(last)
    assert len(slots.unique()) == len(last)
    assert torch.equal(slots // pool.each, last // 16)
    assert slots.max() < len(pool.values) - 1 if len(slots) else True


def test_experts_of_a_table_are_those_of_the_token() -> None:
    made, tokens = model(), random_tokens(2, 9)
    _, routing = made(tokens, collect_routing=True)
    router = made.layers[0].ffn.router
    assert torch.equal(routing[0].experts, router.table[tokens.flatten()].long())
    scores: Tensor = torch.nn.functional.softplus(routing[0].logits.double()).sqrt().gather(-1, routing[0].experts)
    wanted = 1.5 * scores / scores.sum(-1, keepdim=True)
    assert (routing[0].weights - wanted).abs().max() < 1e-6
    assert not torch.equal(made(tokens), model(hashed=False)(tokens))


def test_a_table_is_numbers_of_experts(tmp_path: Path) -> None:
    """It does not learn, is written as it was published, and has none that there is not."""
    tiny.save(tmp_path, *tiny.ROWS["deepseek_v4"])
    tensors = load_file(tmp_path / "model.safetensors")
    (name,) = (each for each in tensors if each.endswith("tid2eid"))
    llm = minillm.load(tmp_path, device="cpu")
    assert not any(each.endswith("table") for each in learner.whole(llm).named)
    learner.write_checkpoint(tmp_path, llm.model, tmp_path / "out")
    (written,) = (each for key, each in load_file(tmp_path / "out/model.safetensors").items() if "tid2eid" in key)
    assert written.dtype == tensors[name].dtype == torch.int64
    assert torch.equal(written, tensors[name])
    for odd in (8, -1):
        tensors[name][3, 1] = odd
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"router.table: a token goes to expert {odd}, and there are 8; download"):
            minillm.load(tmp_path, device="cpu")
