"""The loss of a head that is not learnt: its gradient, computed with the logits, is what autograd finds."""

from __future__ import annotations

import pytest
import torch

from minillm.ops import cross_entropy

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-6}  # of gradients up to 2; 4e-7 and 2^-7 were seen


@pytest.mark.parametrize("most", [100, 10**6])  # parts of two positions, or all at once
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_as_autograd(
    most: int, cap: float | None, biased: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "MOST_LOGITS", most)
    draw = torch.Generator().manual_seed(0)
    h, w, b = (torch.randn(shape, generator=draw).to(dtype) for shape in ((9, 7), (50, 7), (50,)))
    targets = torch.randint(50, (9,), generator=draw)
    targets[3] = -100
    found = []
    for learnt in (False, True):
        x = h.clone().requires_grad_()
        weight = w.clone().requires_grad_(learnt)
        loss = cross_entropy.linear_cross_entropy(x, weight, targets, cap, bias=b if biased else None)
        (3 * loss).backward()
        assert x.grad is not None
        found.append((loss.detach(), x.grad))
    (loss, gradient), (expected, by_autograd) = found
    assert abs(loss - expected) <= 1e-6 * expected
    assert (gradient - by_autograd).abs().max() <= ROUNDING[dtype]
    assert not gradient[3].any()
    assert gradient[2].any()
