"""Fused linear and cross-entropy, beyond `test_kernels.py`: targets left out and wrong, and what memory it takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.kernels import cross_entropy as kernel
from minillm.kernels.cross_entropy import linear_cross_entropy

pytestmark = pytest.mark.usefixtures("small_kernels")


def test_nothing_to_learn_from() -> None:
    h, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = linear_cross_entropy(h, w, torch.full((3,), -100))
    assert loss.item() == 0.0
    assert all(torch.equal(each, torch.zeros_like(each)) for each in torch.autograd.grad(loss, (h, w)))
    assert linear_cross_entropy(torch.ones(0, 4), w, torch.ones(0, dtype=torch.int64)).item() == 0.0


def test_another_index_is_ignored() -> None:
    h, w, targets = torch.randn(4, 6), torch.randn(9, 6), torch.tensor([1, 7, 2, 7])
    assert torch.allclose(
        linear_cross_entropy(h, w, targets, ignore_index=7), F.cross_entropy(h[::2] @ w.t(), targets[::2])
    )


@pytest.mark.parametrize("bad", [-1, 9, 1000])
def test_a_target_outside_the_vocabulary_is_not_passed_over(bad: int) -> None:
    assert linear_cross_entropy(torch.randn(2, 6), torch.randn(9, 6), torch.tensor([1, bad])).isnan()


def test_without_gradients_nothing_is_kept() -> None:
    h, w, targets = torch.randn(4, 6), torch.randn(9, 6), torch.tensor([1, 7, 2, 8])
    loss = linear_cross_entropy(h, w, targets)
    assert loss.grad_fn is None
    assert torch.allclose(loss, F.cross_entropy(h @ w.t(), targets))


def test_logits_exist_for_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their largest piece takes no more than twice what h does, where that is more than CHUNK rows."""
    monkeypatch.setattr(kernel, "CHUNK", 1)
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
