"""Experts in Triton, beyond `test_kernels.py`: the sort by expert, what is not read, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.kernels import moe
from minillm.kernels.moe import experts
from minillm.kernels.routing import blocks_of, places, route
from tests.conftest import FAST
from tests.helpers import kernel_cases
from tests.helpers.expert_problems import formula, matrices, routed
from tests.helpers.kernel_problems import BUDGETS

pytestmark = pytest.mark.usefixtures("small_kernels")


@pytest.mark.parametrize("few", [0, 1000])
@pytest.mark.parametrize("tokens", [1, 3, 127])
@torch.no_grad()
def test_no_expert_that_nobody_chose_is_read(few: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe, "FEW", few)
    gate_up, down = matrices(9, 10, 6)
    x = torch.randn(tokens, 10, generator=torch.Generator().manual_seed(3))
    chosen, weights = routed(tokens, 4, 2)
    chosen = torch.tensor([1, 2, 5, 7])[chosen]
    expected = formula(x, chosen, weights, gate_up, down)
    for matrix in (gate_up, down):
        matrix[sorted(set(range(9)) - set(chosen.flatten().tolist()))] = float("nan")
    found = experts(x, chosen, weights, gate_up, down)
    assert kernel_cases.ulps(found, expected, torch.ones(1)) <= BUDGETS["experts"]["result"][0]


@settings(max_examples=40, **FAST)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 20), st.booleans())
def test_blocks_cover_every_pick_once(picks: list[int], rows: int, from_routing: bool) -> None:
    """With places counted here, or noted by the kernel that routed; these are one row each."""
    chosen = torch.tensor(picks)[:, None]
    place, count = places(chosen, 6)
    if from_routing:
        logits = torch.nn.functional.one_hot(chosen[:, 0], 6).float()
        found, _, (place, count) = route(logits, None, 1)
        assert torch.equal(found, chosen)
    assert count.tolist() == [picks.count(e) for e in range(6)]
    order, expert, first, end = blocks_of(chosen, place, count, rows)
    seen = []
    for e, start, stop in zip(expert.tolist(), first.tolist(), end.tolist(), strict=True):
        if e < 6:
            mine = order[start : min(start + rows, stop)].tolist()
            assert all(picks[p] == e for p in mine)
            assert mine
            seen += mine
    assert sorted(seen) == list(range(len(picks)))


@torch.no_grad()
def test_the_same_bits_in_any_order() -> None:
    """Programs may count in any order: whatever places come of it, each pick's row is its own."""
    gate_up, down = matrices(4, 24, 20)
    x, (chosen, weights) = torch.randn(40, 24), routed(40, 4, 2)
    place, count = places(chosen, 4)
    other = count[chosen] - 1 - place
    assert torch.equal(
        experts(x, chosen, weights, gate_up, down, noted=(place, count)),
        experts(x, chosen, weights, gate_up, down, noted=(other, count)),
    )


def test_nothing() -> None:
    gate_up, down = matrices(5, 12, 8)
    assert experts(torch.ones(0, 12), *routed(0, 5, 2), gate_up, down).shape == (0, 12)


X, (CHOSEN, WEIGHTS), (GATE_UP, DOWN) = torch.ones(3, 12), routed(3, 5, 2), matrices(5, 12, 8)
REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "tokens": (lambda: experts(torch.ones(4, 12), CHOSEN, WEIGHTS, GATE_UP, DOWN), r"x \[4, 12\], chosen \[3, 2\]"),
    "hidden": (lambda: experts(torch.ones(3, 11), CHOSEN, WEIGHTS, GATE_UP, DOWN), r"x \[3, 11\], gate_up"),
    "inner": (lambda: experts(X, CHOSEN, WEIGHTS, GATE_UP[:, 1:], DOWN), r"gate_up \[5, 15, 12\]"),
    "biases": (lambda: experts(X, CHOSEN, WEIGHTS, GATE_UP, DOWN, "silu", (X, X)), "biases .*expected"),
    "types": (lambda: experts(X, CHOSEN.int(), WEIGHTS, GATE_UP, DOWN), "chosen is torch.int32"),
    "stride": (lambda: experts(torch.ones(12, 3).t(), CHOSEN, WEIGHTS, GATE_UP, DOWN), "stride 3"),
    "dtype": (lambda: experts(X.half(), CHOSEN, WEIGHTS, GATE_UP, DOWN), "gate_up is torch.float32"),
    "activation": (lambda: experts(X, CHOSEN, WEIGHTS, GATE_UP, DOWN, "relu"), "activation is 'relu'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
