"""Products with int8, int4 and fp8 weights against their definitions in fp64, in the interpreter.

Budgets in units of the last place at the largest of what is summed. In fp32 a weight is rounded once when it is made.
In fp16 also to fp16 before it is multiplied, half a unit of each term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks import formula as fp8_formula
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_attention import FAST, drawn, ulps
from torch import Tensor

from minillm.kernels import quant_linear as kernel
from minillm.kernels.quant_linear import fp8_linear, int4_linear, int8_linear

ULPS = {torch.float32: 2.0, torch.float16: 1.3}  # the largest seen over 200 draws was 0.98 and 0.65


@pytest.fixture(autouse=True)
def small_blocks_and_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kind: empty(*shape, **kind).fill_(float("nan")))
    for name in ("FEW", "MANY", "FP32"):
        monkeypatch.setattr(kernel, name, (16, 16, 32, 4, 1))


def random_bytes(seed: int, *shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def int4_values(packed: Tensor, inputs: int) -> Tensor:
    """0 to 15, the low half of each byte first."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :inputs].double()


def problem(kind: str, outputs: int, inputs: int, group: int, seed: int) -> tuple[Callable[..., Tensor], tuple, Tensor]:
    """The op, its weights, and what they stand for in fp64."""
    made = torch.Generator().manual_seed(seed)
    groups = -(-inputs // group)
    if kind == "int8":
        q, scale = random_bytes(seed, outputs, inputs).view(torch.int8), torch.rand(outputs, generator=made) * 0.02
        return int8_linear, (q, scale), q.double() * scale.double()[:, None]
    if kind == "fp8":
        shape = -(-outputs // 128), -(-inputs // 128)
        q, scale = random_bytes(seed, outputs, inputs), torch.rand(shape, generator=made) * 0.01
        q[(q & 127) == 127] = 0  # NaN has a test of its own
        weight = q.view(torch.float8_e4m3fn)
        return fp8_linear, (weight, scale), fp8_formula(weight, scale)
    packed, scale = random_bytes(seed, outputs, -(-inputs // 2)), torch.rand(outputs, groups, generator=made) * 0.2
    zero = torch.rand(outputs, groups, generator=made) * 15 if kind == "int4 with zeros" else None
    at = torch.arange(inputs) // group
    shift = zero.double()[:, at] if zero is not None else 8.0
    return int4_linear, (packed, scale, zero, group), (int4_values(packed, inputs) - shift) * scale.double()[:, at]


def check(
    kind: str, rows: int, outputs: int, inputs: int, group: int, dtype: torch.dtype, biased: bool, seed: int
) -> None:
    op, weights, exact = problem(kind, outputs, inputs, group, seed)
    x, bias = drawn(dtype, (rows, inputs + 5), (outputs,), seed=seed)
    x, options = x[:, :inputs], {"bias": bias} if biased else {}
    found = op(x, *weights, **options)
    expected = x.double() @ exact.t() + (bias.double() if biased else 0.0)
    terms = (x.double().abs() @ exact.abs().t()) + (bias.double().abs() if biased else 0.0)
    assert found.dtype == dtype
    assert ulps(found, expected, terms) <= ULPS[dtype]


KINDS = ("int8", "int4", "int4 with zeros", "fp8")


@settings(max_examples=40, **FAST)
@given(st.data())
def test_as_drawn(data: st.DataObject) -> None:
    kind, dtype = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from((torch.float32, torch.float16)))
    rows, outputs, inputs = (data.draw(st.integers(1, most)) for most in (40, 50, 90))
    group = data.draw(st.sampled_from((1, 7, 32, 64, 128)))
    check(kind, rows, outputs, inputs, group, dtype, data.draw(st.booleans()), data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 1, 1), (3, 127, 129), (17, 130, 3)])
def test_odd_shapes(kind: str, rows: int, outputs: int, inputs: int) -> None:
    for dtype in (torch.float32, torch.float16):
        check(kind, rows, outputs, inputs, 32, dtype, True, 0)


def test_every_byte_of_fp8() -> None:
    """Subnormal, negative and NaN ones too."""
    weight = torch.arange(256, dtype=torch.uint8).view(256, 1).view(torch.float8_e4m3fn)
    found = fp8_linear(torch.ones(1, 1), weight, torch.ones(2, 1))[0]
    torch.testing.assert_close(found, weight.float()[:, 0], rtol=0, atol=0, equal_nan=True)


def test_shapes_of_x() -> None:
    op, weights, exact = problem("int8", 6, 8, 32, 0)
    x = torch.randn(2, 3, 8)
    assert torch.allclose(op(x, *weights), (x.double() @ exact.t()).float(), atol=1e-5)
    assert op(torch.ones(0, 8), *weights).shape == (0, 6)


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
