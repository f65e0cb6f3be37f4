"""Fused linear and cross-entropy against PyTorch's in fp64, in the interpreter: the loss and every gradient.

The loss is a sum in fp32; logits are rounded to the type of h, and so are their gradients. Largest seen over 150 draws:
1.4e-6 of the loss in fp32 and 3.2e-4 in fp16; over 120, 19 units of a gradient in fp32, with a cap, and 0.93 in fp16.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_attention import FAST, drawn, ulps
from torch import Tensor

from minillm.kernels import cross_entropy as kernel
from minillm.kernels.cross_entropy import linear_cross_entropy

LOSS = {torch.float32: 4e-6, torch.float16: 1e-3}
GRADIENT_ULPS = 12.0


@pytest.fixture(autouse=True)
def small_blocks_and_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kind: empty(*shape, **kind).fill_(float("nan")))
    monkeypatch.setattr(kernel, "BLOCK", 32)


def expected(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None, bias: Tensor | None) -> Tensor:
    z = F.linear(hidden, weight, bias)
    return F.cross_entropy(z if cap is None else cap * torch.tanh(z / cap), targets)


@settings(max_examples=30, **FAST)
@given(st.data())
def test_as_drawn(data: st.DataObject) -> None:
    tokens, hidden, words = (data.draw(st.integers(1, most)) for most in (40, 30, 130))
    dtype, seed = data.draw(st.sampled_from((torch.float32, torch.float16))), data.draw(st.integers(0, 99))
    cap = data.draw(st.none() | st.floats(0.5, 20.0))
    h, w, b = drawn(dtype, (tokens, hidden + 2), (words, hidden), (words,), seed=seed)
    inputs = [h[:, :hidden].requires_grad_(), (w * hidden**-0.5).requires_grad_()]
    inputs += [b.requires_grad_()] if data.draw(st.booleans()) else []
    targets = torch.randint(words, (tokens,), generator=torch.Generator().manual_seed(seed))
    targets[data.draw(st.lists(st.integers(0, tokens - 1), max_size=tokens - 1))] = -100
    if (targets == -100).all():
        targets[0] = 0
    exact = [each.detach().double().requires_grad_() for each in inputs]
    bias = inputs[2] if len(inputs) > 2 else None
    found = linear_cross_entropy(*inputs[:2], targets, cap, bias=bias)
    wanted = expected(*exact[:2], targets, cap, exact[2] if len(exact) > 2 else None)
    assert found.dtype == torch.float32
    assert abs(found.item() - wanted.item()) <= LOSS[dtype]
    ours, theirs = torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * wanted, exact)
    for one, other in zip(ours, theirs, strict=True):
        assert ulps(one, other) <= GRADIENT_ULPS * max(1.0, cap or 0.0)


def test_nothing_to_learn_from() -> None:
    h, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = linear_cross_entropy(h, w, torch.full((3,), -100))
    assert loss.item() == 0.0
    assert all(torch.equal(each, torch.zeros_like(each)) for each in torch.autograd.grad(loss, (h, w)))
    assert linear_cross_entropy(torch.ones(0, 4), w, torch.ones(0, dtype=torch.int64)).item() == 0.0


def test_another_index_is_ignored() -> None:
    h, w, targets = torch.randn(4, 6), torch.randn(9, 6), torch.tensor([1, 7, 2, 7])
    assert torch.allclose(
        linear_cross_entropy(h, w, targets, ignore_index=7), expected(h[::2], w, targets[::2], None, None)
    )


@pytest.mark.parametrize("bad", [-1, 9, 1000])
def test_a_target_outside_the_vocabulary_is_not_passed_over(bad: int) -> None:
    assert linear_cross_entropy(torch.randn(2, 6), torch.randn(9, 6), torch.tensor([1, bad])).isnan()


def test_without_gradients_nothing_is_kept() -> None:
    h, w, targets = torch.randn(4, 6), torch.randn(9, 6), torch.tensor([1, 7, 2, 8])
    loss = linear_cross_entropy(h, w, targets)
    assert loss.grad_fn is None
    assert torch.allclose(loss, expected(h, w, targets, None, None))


def test_logits_exist_for_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their largest piece takes no more than twice what h does."""
    seen, losses = list[int](), kernel.losses
    monkeypatch.setattr(kernel, "losses", lambda z, *rest: (seen.append(z.numel()), losses(z, *rest))[1])
    h, w = torch.randn(96, 8), torch.randn(100, 8)
    linear_cross_entropy(h, w, torch.zeros(96, dtype=torch.int64))
    assert len(seen) > 5
    assert max(seen) <= 2 * h.numel()


H, W, T = torch.ones(3, 4), torch.ones(5, 4), torch.zeros(3, dtype=torch.int64)
REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "width": (lambda: linear_cross_entropy(torch.ones(3, 5), W, T), "do not fit"),
    "targets": (lambda: linear_cross_entropy(H, W, T[:2]), r"targets \[2\]"),
    "type of targets": (lambda: linear_cross_entropy(H, W, T.int()), "targets are torch.int32"),
    "dtype": (lambda: linear_cross_entropy(H, W.half(), T), "weight is torch.float16"),
    "bias": (lambda: linear_cross_entropy(H, W, T, bias=torch.ones(4)), r"bias is \[4\], expected \[5\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
