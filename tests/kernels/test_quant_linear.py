"""Products with int8, int4 and fp8 weights, beyond `test_kernels.py`: every byte of fp8, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from minillm.kernels.quant_linear import fp8_linear, int4_linear, int8_linear


def test_every_byte_of_fp8() -> None:
    """Subnormal, negative and NaN ones too."""
    weight = torch.arange(256, dtype=torch.uint8).view(256, 1).view(torch.float8_e4m3fn)
    found = fp8_linear(torch.ones(1, 1), weight, torch.ones(2, 1))[0]
    torch.testing.assert_close(found, weight.float()[:, 0], rtol=0, atol=0, equal_nan=True)


def test_shapes_of_x() -> None:
    x, q = torch.randn(2, 3, 8), torch.randint(-128, 128, (6, 8)).to(torch.int8)
    assert torch.equal(int8_linear(x, q, S8), int8_linear(x.view(6, 8), q, S8).view(2, 3, 6))
    assert int8_linear(torch.ones(0, 8), q, S8).shape == (0, 6)


X, Q8, S8 = torch.ones(2, 8), torch.ones(6, 8, dtype=torch.int8), torch.ones(6)
Q4 = torch.ones(6, 4, dtype=torch.uint8)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "inputs": (lambda: int8_linear(X[:, :7], Q8, S8), r"weight is torch.int8 \[6, 8\].*expected .* \[6, 7\]"),
    "type": (lambda: int8_linear(X, Q8.float(), S8), "weight is torch.float32"),
    "scale": (lambda: int8_linear(X, Q8, S8.half()), "scale is torch.float16"),
    "strided": (lambda: int8_linear(X, torch.ones(8, 6, dtype=torch.int8).t(), S8), "strides"),
    "x": (lambda: int8_linear(torch.ones(8, 2).t(), Q8, S8), "the last dimension of x has stride 2"),
    "bias": (lambda: int8_linear(X, Q8, S8, torch.ones(5)), r"bias is torch.float32 \[5\]"),
    "packed": (lambda: int4_linear(X, Q4[:, :3].contiguous(), S8[:, None], None, 8), r"packed is torch.uint8 \[6, 3\]"),
    "group": (lambda: int4_linear(X, Q4, S8[:, None], None, 0), "group is 0"),
    "zero": (lambda: int4_linear(X, Q4, S8[:, None], torch.ones(6, 2), 8), r"zero is torch.float32 \[6, 2\]"),
    "fp8": (lambda: fp8_linear(X, Q8, S8), "expected contiguous torch.float8_e4m3fn"),
    "factors": (lambda: fp8_linear(X, Q8.to(torch.float8_e4m3fn), S8), r"scale is torch.float32 \[6\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
