"""What `minillm.routes` measures: small cases worked out by hand, and laws that hold for every router."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import minillm
from minillm import spec
from minillm.engine.windows import windows
from minillm.llm import LLM
from minillm.ops import routing
from minillm.ops.routing import Routing, route
from minillm.routes import record as routes_record
from minillm.routes.drift import divergence, drift, flips
from minillm.routes.measure import (
    Picks,
    distribution,
    entropy,
    joined,
    margins,
    nats,
    pairs,
    picks,
    shares,
    specialists,
    summary,
    together,
)
from minillm.routes.record import record, routers
from tests.helpers import tiny

FOUR = spec.Router(num_experts=4, top_k=2)
MIXTURES = (
    "mixtral tanuki qwen2_moe qwen3_moe olmoe phimoe deepseek deepseek_v2 deepseek_v3 deepseek_v3-half gpt_oss kimi_k2"
).split()


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def chosen(experts: list[list[int]], margin: list[float] | None = None, groups: list[float] | None = None) -> Picks:
    """Picks with even weights."""
    count = len(experts)
    weights = torch.full((count, len(experts[0])), 1 / len(experts[0]))
    some = (torch.tensor(each or [math.inf] * count) for each in (margin, groups))
    return Picks(torch.tensor(experts, dtype=torch.int16), weights, *some, torch.zeros(count))


def margin_of(logits: Tensor, router: spec.Router, correction: Tensor | None = None) -> tuple[list[float], list[float]]:
    own, group = margins(route(logits, correction, router), correction, router)
    return own.tolist(), group.tolist()


def test_a_margin_is_of_the_score_that_chooses() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05: the second leads by 0.15; with 0.35 more the third has 0.5 and the last to be
    chosen leads 0.3 by 0.2; logits of a softmax over the chosen are compared as they are."""
    logits = tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert margin_of(logits, FOUR) == (pytest.approx([0.15]), [math.inf])
    corrected = spec.Router(num_experts=4, top_k=2, bias=True)
    assert margin_of(logits, corrected, torch.tensor([0, 0, 0.36, 0]))[0] == pytest.approx([0.2])
    plain = spec.Router(num_experts=4, top_k=2, score="softmax_chosen")
    assert margin_of(logits, plain)[0] == pytest.approx([math.log(2)])
    assert margin_of(logits, spec.Router(num_experts=4, top_k=4))[0] == [math.inf]  # all are chosen


def test_a_margin_stays_within_the_chosen_groups() -> None:
    """Sigmoids 0.9 0.1 | 0.6 0.5 | 0.8 0.0: by their best the groups have 0.9, 0.6, 0.8, by sums of two 1.0, 1.1, 0.8.
    The first of two then gives experts 0 and 4 ahead of 1, the second 0 and 2 ahead of 3."""
    logits = tensor([0.9, 0.1, 0.6, 0.5, 0.8, 0.001]).logit()
    router = {"num_experts": 6, "top_k": 2, "score": "sigmoid", "num_groups": 3, "top_groups": 2}
    own, group = margin_of(logits, spec.Router(**router))
    assert (own, group) == (pytest.approx([0.7]), pytest.approx([0.2]))
    own, group = margin_of(logits, spec.Router(**router, group_score="top2_sum"))
    assert (own, group) == (pytest.approx([0.1]), pytest.approx([1.0 - 0.801]))
    full = spec.Router(**{**router, "top_groups": 1, "num_groups": 3})  # the two of the one group: nothing else
    assert margin_of(logits, full)[0] == [math.inf]


def test_entropy_of_a_token() -> None:
    assert entropy(torch.zeros(1, 4), FOUR).item() == pytest.approx(math.log(4))
    assert entropy(tensor([0.5, 0.25, 0.25, 1e-30]).log(), FOUR).item() == pytest.approx(1.5 * math.log(2))
    sigmoid = spec.Router(num_experts=2, top_k=1, score="sigmoid")  # 0.9 and 0.3 are shares of 3/4 and 1/4
    assert entropy(tensor([0.9, 0.3]).logit(), sigmoid).item() == pytest.approx(nats(torch.tensor([0.75, 0.25])))


def test_load_pairs_and_weights() -> None:
    found = chosen([[0, 1], [1, 0], [0, 2], [2, 0]], margin=[0.25, 0.125, 0.005, 0.5])
    found = found._replace(weights=tensor([0.75, 0.25], [0.75, 0.25], [0.5, 0.5], [1.0, 0.0]))
    report = summary(7, found, torch.tensor([5, 5, 6, 6]), FOUR, 0.01, str)
    assert report["load"] == [0.5, 0.25, 0.25, 0]
    assert report["weighted_load"] == [1.5 / 4, 1.0 / 4, 1.5 / 4, 0]
    assert report["effective_experts"] == pytest.approx(2**1.5)
    assert (report["max_over_mean"], report["never_used"]) == (2, [3])
    assert (report["top1_weight"], report["top1_share"]) == (0.75, 0.75)
    assert (report["margin"]["min"], report["margin"]["near_ties"]) == (pytest.approx(0.005), 0.25)
    assert sum(report["margin"]["histogram"]) == 4
    counts = together(found.experts, 4)
    assert counts.tolist() == [[4, 2, 2, 0], [2, 2, 0, 0], [2, 0, 2, 0], [0, 0, 0, 0]]


def test_pairs_over_independence() -> None:
    """Of 40 tokens 20 choose 0 and 1, 10 choose 0 and 2, 10 choose 2 and 3: 0 and 1 come 20 times for 30 * 20 / 40."""
    counts = together(torch.tensor([[0, 1]] * 20 + [[0, 2]] * 10 + [[2, 3]] * 10), 4)
    found = {tuple(each["experts"]): (each["count"], each["expected"], each["lift"]) for each in pairs(counts, 40)}
    assert found == {(2, 3): (10, 5.0, 2.0), (0, 1): (20, 15.0, 20 / 15), (0, 2): (10, 15.0, 10 / 15)}


def test_pairs_count_exactly_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)).topk(3).indices
    whole = together(experts, 6)
    monkeypatch.setattr("minillm.routes.measure.ROWS_AT_ONCE", 7)
    assert torch.equal(together(experts, 6), whole)


def test_specialists_by_lift() -> None:
    """Token 8 comes 6 times, always at expert 1, which takes 8 of 20 tokens: 20 / 8. Token 9 comes twice there of 14
    times, less than expected; token 7 too seldom to tell."""
    ids = [8] * 6 + [9] * 14
    experts = torch.tensor([[1]] * 6 + [[1]] * 2 + [[0]] * 12)
    found = specialists(experts, torch.tensor(ids), 3, lambda token: f"<{token}>")
    assert found[1] == [{"id": 8, "token": "<8>", "count": 6, "lift": pytest.approx(2.5)}]
    assert found[0] == [{"id": 9, "token": "<9>", "count": 12, "lift": pytest.approx(12 / (14 * 12 / 20))}]
    assert found[2] == []
    few = specialists(torch.tensor([[1]] * 4 + [[0]] * 16), torch.tensor([7] * 4 + [9] * 16), 2, str)
    assert [each["id"] for each in few[1]] == []


def test_a_distribution_leaves_out_who_had_no_choice() -> None:
    margin = torch.tensor([*range(101), math.inf, math.inf]) / 1
    found = distribution(margin, 10.0)
    assert found is not None
    assert [found[key] for key in ("min", "p1", "p10", "p50", "p90", "max", "mean")] == [0, 1, 10, 50, 90, 100, 50]
    assert (found["without_rival"], found["near_ties"]) == (2, pytest.approx(10 / 101))
    assert distribution(margin[-2:], 10.0) is None


def test_divergence() -> None:
    one, other, even = torch.tensor([1.0, 0]).double(), torch.tensor([0, 1.0]).double(), torch.tensor([0.5, 0.5])
    assert divergence(one, other) == pytest.approx(1)
    assert divergence(one, one) == 0
    # Of (3/4, 1/4) the entropy is 2 - 3/4 log2 3, half of that of the even one is 1/2.
    assert divergence(one, even.double()) == pytest.approx(2 - 0.75 * math.log2(3) - 0.5)


def test_flips_by_margin() -> None:
    """The second token goes elsewhere, the first to the same two turned round, the fourth had its group near."""
    before = chosen([[0, 1], [2, 3], [1, 2], [0, 1]], [0.5, 0.001, 0.25, 0.125], [math.inf, math.inf, math.inf, 0.002])
    after = chosen([[1, 0], [2, 0], [1, 2], [2, 3]])
    found = flips(before, after, 0.01)
    assert (found["flipped"], found["experts_kept"]) == (0.5, 5 / 8)
    assert found["margin_of_flipped"] == pytest.approx((0.001 + 0.125) / 2)
    assert found["margin_of_kept"] == pytest.approx(0.375)
    assert (found["flipped_of_near_ties"], found["flipped_of_others"]) == (1, 0)
    assert drift(3, before, after, FOUR)["load_change"] == pytest.approx([0, -1 / 8, 1 / 8, 0])
    assert flips(before, before, 0.01)["margin_of_flipped"] is None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LLM]:
    """One random model of each router."""
    folder = tmp_path_factory.mktemp("routes")
    for name in MIXTURES:
        (folder / name).mkdir()
        tiny.save(folder / name, *tiny.ROWS[name])
    return {name: minillm.load(folder / name, kernels="reference") for name in MIXTURES}


IDS = tiny.tokens(97, 90).tolist()


@pytest.mark.parametrize("name", MIXTURES)
def test_laws_of_every_router(name: str, models: dict[str, LLM]) -> None:
    """The best expert not chosen is chosen when it gains a little more than the margin, and not with a little less."""
    llm = models[name]
    with torch.no_grad():
        _, routed = llm.model(torch.tensor([IDS]), collect_routing=True)
    for layer, router in routers(llm.spec).items():
        correction = llm.model.layers[layer].ffn.router.bias
        found = picks(routed[layer], correction, router)
        assert torch.equal(found.experts.long(), routed[layer].experts)
        assert (found.margin >= 0).all()
        assert (found.group_margin >= 0).all()
        assert (found.entropy <= math.log(router.num_experts) + 1e-6).all()
        choice = routing.score(routed[layer].logits, router) + (0 if correction is None else correction)
        held = choice
        if router.num_groups > 1:
            held = choice.masked_fill(~routing.best_groups(choice, router), -math.inf)
        rival = held.scatter(-1, routed[layer].experts, -math.inf).argmax(-1, keepdim=True)
        for gain, same in ((0.999, True), (1.001, False)):
            raised = choice.scatter_add(-1, rival, gain * found.margin[:, None] + (1e-7 if gain > 1 else -1e-7))
            again = routing.choose(raised, None, router).sort(-1).values
            assert ((again == routed[layer].experts.sort(-1).values).all(-1) == same).all()


@pytest.mark.parametrize("name", MIXTURES)
def test_every_router_is_measured(name: str, models: dict[str, LLM]) -> None:
    llm = models[name]
    found = record(llm, [IDS, IDS[:7]], context=32)
    ids = torch.tensor(IDS + IDS[:7])
    for layer, router in routers(llm.spec).items():
        report = summary(layer, found.layers[layer], ids, router, 0.01, str)
        assert sum(report["load"]) == pytest.approx(1, abs=1e-12)
        assert sum(report["weighted_load"]) == pytest.approx(1, abs=1e-12)
        assert 1 <= report["effective_experts"] <= router.num_experts + 1e-9
        assert (report["groups"] is not None) == (router.num_groups > 1)
        if report["groups"]:
            assert sum(report["groups"]["load"]) == pytest.approx(1, abs=1e-12)
            assert 1 <= report["groups"]["used_per_token"] <= router.top_groups
        both = together(found.layers[layer].experts, router.num_experts)
        assert both.triu(1).sum() == len(ids) * router.top_k * (router.top_k - 1) // 2
        same = drift(layer, found.layers[layer], found.layers[layer], router)
        assert same["divergence_bits"] == 0
        assert not any(same["load_change"])
        assert flips(found.layers[layer], found.layers[layer], 0.01)["flipped"] == 0


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 7), (90, 10), (1, 1)])
def test_windows_one_by_one(context: int, stride: int, models: dict[str, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is noted once, as in the window that is the first to hold it."""
    llm = models["deepseek_v3"]
    expected: dict[int, list[Picks]] = {layer: [] for layer in routers(llm.spec)}
    for first, last, count in windows(len(IDS) + 1, context, stride):
        with torch.no_grad():
            _, routed = llm.model(torch.tensor([IDS[first:last]]), collect_routing=True)
        for layer, router in routers(llm.spec).items():
            own = Routing(*(part[-count:] for part in routed[layer][:3]))
            expected[layer].append(picks(own, llm.model.layers[layer].ffn.router.bias, router))
    for rows in (4096, 1):
        monkeypatch.setattr(routes_record, "ROWS_AT_ONCE", rows)
        found = record(llm, [IDS], context, stride)
        for layer, parts in expected.items():
            whole = joined(parts)
            assert torch.equal(found.layers[layer].experts, whole.experts)
            # Other numbers of rows are other orders of sums in fp32: up to 4.2e-7 seen.
            assert (found.layers[layer].margin - whole.margin).abs().max() <= 2e-6


def test_chunks_do_not_show_where_attention_is_no_longer_than_them(tmp_path: Path) -> None:
    """Three layers that each see 4 tokens back: with 12 before it a token goes where it goes in the whole text."""
    tiny.save(tmp_path, *tiny.ROWS["mixtral-window"])
    llm = minillm.load(tmp_path, kernels="reference")
    whole, chunked = (record(llm, [IDS], *sizes) for sizes in ((90, 90), (30, 17)))
    for layer in whole.layers:
        assert torch.equal(whole.layers[layer].experts, chunked.layers[layer].experts)
        assert not flips(whole.layers[layer], chunked.layers[layer], 0.01)["flipped"]
    short = record(llm, [IDS], 4, 4)  # and with fewer it may not
    assert any(flips(whole.layers[layer], short.layers[layer], 0.01)["flipped"] for layer in whole.layers)


def test_texts_do_not_see_each_other(models: dict[str, LLM]) -> None:
    llm = models["mixtral"]
    both, one, other = (record(llm, ids) for ids in ([IDS[:40], IDS[40:]], [IDS[:40]], [IDS[40:]]))
    for layer in both.layers:
        assert torch.equal(both.layers[layer].experts, joined([one.layers[layer], other.layers[layer]]).experts)


def test_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        picks(route(tensor([math.nan, 0, 0, 0]), None, FOUR), None, FOUR)
    assert shares(torch.tensor([1, 3])).tolist() == [0.25, 0.75]
