"""Products with fp8 weights, beyond `test_kernels.py`: every byte of fp8, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from minillm.kernels.fp8_linear import fp8_linear


def test_every_byte_of_fp8() -> None:
    """Subnormal, negative and NaN ones too."""
    weight = torch.arange(256, dtype=torch.uint8).view(256, 1).view(torch.float8_e4m3fn)
    found = fp8_linear(torch.ones(1, 1), weight, torch.ones(2, 1))[0]
    torch.testing.assert_close(found, weight.float()[:, 0], rtol=0, atol=0, equal_nan=True)


def test_shapes_of_x() -> None:
    x = torch.randn(2, 3, 8)
    assert torch.equal(fp8_linear(x, W, S), fp8_linear(x.view(6, 8), W, S).view(2, 3, 6))
    assert fp8_linear(torch.ones(0, 8), W, S).shape == (0, 6)


X, W, S = torch.ones(2, 8), torch.randn(6, 8).to(torch.float8_e4m3fn), torch.ones(1, 1)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "inputs": (lambda: fp8_linear(X[:, :7], W, S), r"weight is torch.float8_e4m3fn \[6, 8\].*expected .* \[6, 7\]"),
    "type": (lambda: fp8_linear(X, W.float(), S), "weight is torch.float32"),
    "scale": (lambda: fp8_linear(X, W, S.half()), "scale is torch.float16"),
    "factors": (lambda: fp8_linear(X, W, torch.ones(6)), r"scale is torch.float32 \[6\]"),
    "strided": (lambda: fp8_linear(X, torch.ones(8, 6).to(W.dtype).t(), S), "strides"),
    "x": (lambda: fp8_linear(torch.ones(8, 2).t(), W, S), "the last dimension of x has stride 2"),
    "bias": (lambda: fp8_linear(X, W, S, torch.ones(5)), r"bias is torch.float32 \[5\]"),
    "device": (lambda: fp8_linear(X, W, S.to("meta")), "x is on cpu, some of the weights are not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
