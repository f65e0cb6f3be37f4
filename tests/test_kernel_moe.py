"""Experts in Triton against the formula in fp64, in the interpreter: sorted blocks, and pick by pick.

Budgets in units of the last place at the largest of what is summed. In fp16 the result of act(gate) * up and each
expert's result are rounded before the sum; the largest seen over 120 draws was 0.94, in fp32 3.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_attention import FAST, ulps
from test_moe import formula, matrices, routed
from torch import Tensor

from minillm import grouped, ops, reference
from minillm.kernels import moe
from minillm.kernels.moe import blocks_of, experts
from minillm.spec import ClampedSwiGLU

ULPS = {torch.float32: 8.0, torch.float16: 2.0}
KINDS: list[Any] = ["silu", "gelu", "gelu_tanh", ClampedSwiGLU(1.702, 0.8)]


@pytest.fixture(autouse=True)
def small_blocks_and_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kind: empty(*shape, **kind).fill_(float("nan")))
    for name, value in {"ROWS": 16, "TILE": 16, "DEPTH": 16, "FP32": (16, 16, 4, 1), "FEW_DEPTH": 16}.items():
        monkeypatch.setattr(moe, name, value)


def exactly(given_: tuple[Tensor, ...], activation: Any, biases: Any) -> Tensor:
    """In fp64: the reference rounds nothing then but the sum, which the formula does not."""
    x, chosen, weights, gate_up, down = given_
    rows = []
    for n in range(len(x)):
        y = torch.zeros(x.shape[1], dtype=torch.float64)
        for e, w in zip(chosen[n].tolist(), weights[n].double(), strict=True):
            hidden = gate_up[e].double() @ x[n].double() + (biases[0][e] if biases else 0.0)
            y += w * (down[e].double() @ reference.gated_act(hidden, activation) + (biases[1][e] if biases else 0.0))
        rows.append(y)
    return torch.stack(rows) if rows else x.double()


@settings(max_examples=30, **FAST)
@given(st.data())
@torch.no_grad()
def test_as_drawn(data: st.DataObject) -> None:
    """On both sides of where the form changes, in both layouts, with rows of x apart."""
    count = data.draw(st.integers(1, 9))
    top_k = data.draw(st.integers(1, min(count, 4)))
    tokens, hidden, inner = (data.draw(st.integers(1, most)) for most in (30, 40, 36))
    dtype, seed = data.draw(st.sampled_from((torch.float32, torch.float16))), data.draw(st.integers(0, 99))
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden + 3, generator=made)[:, :hidden].to(dtype)
    gate_up, down = (each.to(dtype) for each in matrices(count, hidden, inner, seed))
    biases = None
    if data.draw(st.booleans()):
        biases = tuple(torch.randn(each.shape[:2], generator=made).to(dtype) for each in (gate_up, down))
    if data.draw(st.booleans()):
        gate_up, down = (grouped.to_input_major(each.clone()) for each in (gate_up, down))
    given_ = (x, *routed(tokens, count, top_k, seed), gate_up, down)
    activation = data.draw(st.sampled_from(KINDS))
    moe.FEW, before = data.draw(st.sampled_from((0, 1000))), moe.FEW
    try:
        found = experts(*given_, activation, biases)
    finally:
        moe.FEW = before
    expected = exactly(given_, activation, biases)
    assert found.dtype == dtype
    assert ulps(found, expected, torch.cat((expected.abs(), torch.ones_like(expected)))) <= ULPS[dtype]


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
    assert ulps(experts(x, chosen, weights, gate_up, down), expected, torch.ones(1)) <= ULPS[torch.float32]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 20))
def test_blocks_cover_every_pick_once(picks: list[int], rows: int) -> None:
    order, expert, first, end = blocks_of(torch.tensor(picks), 6, rows)
    seen = []
    for e, start, stop in zip(expert.tolist(), first.tolist(), end.tolist(), strict=True):
        if e < 6:
            mine = order[start : min(start + rows, stop)].tolist()
            assert all(picks[p] == e for p in mine)
            assert mine
            seen += mine
    assert sorted(seen) == list(range(len(picks)))


@torch.no_grad()
def test_behind_the_seam() -> None:
    triton = ops.select("triton", torch.device("cpu"), torch.float32)
    gate_up, down = matrices(5, 12, 8)
    for tokens in (1, 90):
        given_ = (torch.randn(tokens, 12), *routed(tokens, 5, 2), gate_up, down)
        assert (triton.experts(*given_, "silu") - reference.experts(*given_, "silu")).abs().max() <= 5e-6


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
