"""What each rank holds of a model: every row and column once, and together they compute what one process does."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm import spec as vocabulary
from minillm.model import moe
from minillm.model.cache import Cache
from minillm.model.decoder import skeleton
from minillm.parallel import kept as keeping
from minillm.parallel import split
from minillm.spec import GQA, GatedMLP, Layer, LayerNorm, MoE, Norm, QKNorm, Rope, Router
from minillm.spec import Decoder as Spec
from tests.helpers.specs import EXACT, build, random_tokens, uncut
from tests.parallel.drawn import part, share, splits
from tests.parallel.threads import Thread, in_threads

ROPE = Rope(8, 100.0)


def plain(heads: int = 8, groups: int = 2, inner: int = 24, **changes: object) -> Spec:
    layer = Layer(Norm(1e-6), GQA(heads, groups, 8, ROPE), Norm(1e-6), GatedMLP(inner))
    made = Spec(40, 32, (layer,), Norm(1e-6), False, 64)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@settings(max_examples=30, suppress_health_check=[HealthCheck.filter_too_much])
@given(splits(), st.integers(1, 9), st.sampled_from((0, 9, moe.RECORDED)))
@torch.no_grad()
def test_the_ranks_are_one_model(drawn: tuple[Spec, int, int], count: int, recorded: int) -> None:
    """Through a cache too, whose keys are those of each rank's own heads; experts in both ways, for few tokens and for
    many."""
    spec, ranks, thin = drawn
    model, tokens = build(spec), random_tokens(2, count + 3)
    expected = uncut(model, tokens)

    def logits(rank: Thread) -> Tensor:
        mine = share(model, rank)
        cache = Cache(mine.spec, 2, count + 3, torch.float32)
        return torch.cat([mine(piece, cache) for piece in tokens.split((count, 1, 1, 1), dim=1)], dim=1)

    with patch.object(split, "THIN", thin), patch.object(moe, "RECORDED", recorded):
        made = in_threads(ranks, logits)
    for found in made:
        assert (found - expected).abs().max() <= EXACT


@settings(max_examples=30, suppress_health_check=[HealthCheck.filter_too_much])
@given(splits())
def test_each_value_is_held_once_or_by_all_that_share_it(drawn: tuple[Spec, int, int]) -> None:
    """And each rank's parameters have the shapes that its spec gives them."""
    with patch.object(split, "THIN", drawn[2]):
        _held_once(*drawn[:2])


def _held_once(spec: Spec, ranks: int) -> None:
    shapes = {name: tuple(each.shape) for name, each in skeleton(spec, torch.float32).named_parameters()}
    held = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}
    for rank in range(ranks):
        kept = keeping.kept(spec, ranks, rank)
        own = {
            name: tuple(each.shape)
            for name, each in skeleton(split.local(spec, ranks, rank), torch.float32).named_parameters()
        }
        assert own.keys() == shapes.keys()
        for name, shape in shapes.items():
            numbers = torch.arange(held[name].numel()).view(shape)
            found = part(numbers, kept.get(name), own[name][0])
            assert tuple(found.shape) == own[name]
            if not (name in kept and kept[name].absent):
                held[name].view(-1).index_add_(0, found.flatten(), torch.ones_like(found).flatten())
    for name, times in held.items():
        kept = keeping.kept(spec, ranks, 1).get(name)
        if kept is None:
            assert (times == ranks).all(), name
        else:
            assert (times >= 1).all(), name
            if not any(each in name for each in ("qkv", "k_norm", "conv", "zxbcd")):  # kv heads, B and C may be shared
                assert (times == 1).all(), name
            sharers = {ranks // each for each in range(1, ranks + 1) if ranks % each == 0}
            assert set(times.unique().tolist()) <= {1, *sharers}, name


def test_a_seventy_billion_over_eight() -> None:
    """Each rank is a model of 8 heads over 1."""
    layer = Layer(Norm(1e-5), GQA(64, 8, 128, ROPE), Norm(1e-5), GatedMLP(28672))
    spec = Spec(128256, 8192, (layer,) * 80, Norm(1e-5), False, 8192)
    for rank in range(8):
        mine = split.local(spec, 8, rank)
        assert mine.layers[0].attention == GQA(8, 1, 128, ROPE)
        assert mine.layers[79].ffn == GatedMLP(3584)
        assert mine.embedding.rows == (16032 * rank, 16032 * rank + 16032)


@pytest.mark.parametrize("ranks", [2, 3, 5, 7])
def test_shares_need_not_be_equal(ranks: int) -> None:
    """Of 7 groups of heads and 1000 values no rank has more than one group, or a grain, beyond an equal share."""
    spec = plain(14, 7, 1000, vocab_size=101)
    found = [split.local(spec, ranks, rank) for rank in range(ranks)]
    groups = [each.layers[0].attention.num_kv_heads for each in found]
    inner = [each.layers[0].ffn.intermediate_size for each in found]
    rows = [end - first for first, end in (each.embedding.rows for each in found)]
    assert (sum(groups), sum(inner), sum(rows)) == (7, 1000, 101)
    assert max(groups) - min(groups) <= 1
    assert max(rows) - min(rows) <= 1
    assert max(inner) - min(inner) <= 8
    assert all(each % 8 == 0 for each in inner[:-1])


def test_shares_are_whole_blocks_where_these_are_many() -> None:
    assert [split.grains(14336, 8, rank) for rank in (0, 7)] == [(0, 1792), (12544, 14336)]
    assert split.grains(768, 4, 1) == (192, 384)  # 3 of 256 would be 1, 1, 1 and none


@pytest.mark.parametrize(
    ("inner", "experts", "ranks", "own"),
    [(14336, 8, 8, None), (768, 128, 4, None), (768, 128, 7, (18, 36)), (64, 8, 3, (2, 5)), (64, 2, 4, None)],
)
def test_experts_stay_whole_where_slices_would_be_thin(
    inner: int, experts: int, ranks: int, own: tuple[int, int] | None
) -> None:
    """Below 128 values of each, and if there are enough of them."""
    made = MoE(Router(experts, 1), inner, shared=GatedMLP(inner))
    found = split._part(made, ranks, 1)
    assert found.own == own
    assert (found.intermediate_size == inner) == (own is not None)
    assert found.shared.intermediate_size < inner


def test_fewer_kv_heads_than_ranks() -> None:
    """Each is on as many ranks, which share its query heads."""
    found = [split.heads(14, 2, 4, rank) for rank in range(4)]
    assert found == [((0, 3), (0, 1)), ((3, 7), (0, 1)), ((7, 10), (1, 2)), ((10, 14), (1, 2))]


@pytest.mark.parametrize(
    ("spec", "ranks", "words"),
    [
        (
            plain(),
            3,
            "3 ranks cannot share this model: layer 0 has 8 heads over 2 kv heads; possible numbers: 1, 2, 4, 6, 8",
        ),
        (plain(), 16, "layer 0 has 8 heads over 2 kv heads"),
        (plain(vocab_size=3), 4, "the vocabulary has 3 tokens"),
        (plain(inner=1), 2, "layer 0 has a feed-forward of 1 values"),
        (plain(), 0, "--ranks is 0, it must be from 1 to 1024"),
    ],
)
def test_what_cannot_be_split_is_refused_with_what_can(spec: Spec, ranks: int, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        split.local(spec, ranks, 0)
    assert "\n" not in str(raised.value)


def test_a_layer_norm_over_all_heads_is_refused() -> None:
    layer = Layer(Norm(1e-6), GQA(4, 4, 8, ROPE, qk_norm=QKNorm(LayerNorm(1e-5), "all")), Norm(1e-6), GatedMLP(24))
    with pytest.raises(ValueError, match="a LayerNorm over all of its heads; possible numbers: 1"):
        split.check(plain(layers=(layer,)), 2)


def test_every_kind_of_part_can_be_split() -> None:
    """What `spec` may grow is named here before it is split wrongly."""
    kinds = {
        *vocabulary.Attention.__args__,
        *vocabulary.Recurrent.__args__,
        vocabulary.Beside,
        vocabulary.Fronted,
        vocabulary.GatedMLP,
        vocabulary.MLP,
        vocabulary.MoE,
    }
    assert set(keeping.PARTS) == kinds


def test_no_torch_is_needed() -> None:
    script = "import sys; import minillm.spec, minillm.parallel.split; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
