"""Products with matrices in groups, beyond `test_kernels.py`: each form at each number of rows, every number, the parts
that inputs are cut in, and what is refused or left to the plain version."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.kernels import grouped_linear as kernel
from minillm.ops import reference, select
from minillm.weights.grouped import Fields, Grouped
from tests.helpers.kernel_cases import Awkward, Case, ulps
from tests.helpers.kernel_problems import BUDGETS
from tests.helpers.product_problems import FORMS, drawn, meant

CPU = torch.device("cpu")
TRITON = select("triton", CPU, torch.float32)
OUTPUTS, INPUTS = 19, 300  # no multiple of any block, group or span

pytestmark = pytest.mark.usefixtures("small_kernels")


def problem(made: Grouped, dtype: torch.dtype, *rows: int) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """x, parts, bias, and W in fp64."""
    case = Case(Awkward(0), dtype, CPU)
    fields = drawn(case, made, OUTPUTS, INPUTS)
    return case.part(*rows, INPUTS), made.pack(fields), case.values(OUTPUTS), meant(made, fields)


SINGLE, HALF = torch.float32, torch.float16


@pytest.mark.parametrize(("rows", "dtype"), [((1,), SINGLE), ((1,), HALF), ((3,), HALF), ((1, 17), SINGLE)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_each_form(form: str, rows: tuple[int, ...], dtype: torch.dtype) -> None:
    """Against fp64, and against the plain version, which may be as far off on the other side."""
    made = FORMS[form]
    x, parts, bias, weight = problem(made, dtype, *rows)
    terms = x.double().abs() @ weight.abs().t() + bias.double().abs()
    budget = BUDGETS["grouped_linear"]["result"][dtype != torch.float32]
    given = None if rows == (3,) else bias
    found = TRITON.grouped_linear(x, parts, made, OUTPUTS, given)
    assert found.shape == (*rows, OUTPUTS)
    expected = x.double() @ weight.t() + (0.0 if given is None else given.double())
    assert ulps(found, expected, terms) <= budget
    plain = reference.grouped_linear(x, parts, made, OUTPUTS, given)
    assert ulps(found, plain.double(), terms) <= 2 * budget


@pytest.mark.parametrize("rows", [1, 32], ids=["one row", "rows"])
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_every_number_in_every_place(bits: int, rows: int) -> None:
    """Rows of an identity matrix as x: what comes out are the columns of W, to the bit."""
    made = Grouped(bits, 16, torch.float32, zero=None)
    q = (torch.arange(2**bits)[:, None] + 7 * torch.arange(32)) % 2**bits
    scale, zero = torch.rand(len(q), 2), torch.randint(2**bits, (len(q), 2), dtype=torch.uint8)
    parts = made.pack(Fields(q.to(torch.uint8), scale, zero=zero))
    found = torch.cat([TRITON.grouped_linear(x, parts, made, len(q)) for x in torch.eye(32).split(rows)])
    assert torch.equal(found.t(), made.dequantise(parts, 32, torch.float32))


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_inputs_in_parts(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fill a GPU: the sum of the parts is the product; with enough programs there is one part."""
    made = FORMS["Q5_K"]
    x, parts, bias, weight = problem(made, torch.float32, rows)
    found, cuts, cut = [], list[int](), kernel.cut
    monkeypatch.setattr(kernel, "cut", lambda *given: cuts.append(cut(*given)[1]) or cut(*given))
    for programs in (1, 4, 528):
        monkeypatch.setattr(kernel, "PROGRAMS", programs)
        monkeypatch.setattr(kernel, "LEAST", 64)
        found.append(TRITON.grouped_linear(x, parts, made, OUTPUTS, bias))
    assert cuts[0] == 1 < cuts[2] <= INPUTS // 64 + 1
    expected, terms = x.double() @ weight.t() + bias.double(), x.double().abs() @ weight.abs().t()
    assert max(ulps(each, expected, terms) for each in found) <= BUDGETS["grouped_linear"]["result"][0]


def test_how_inputs_are_cut() -> None:
    assert kernel.cut(4096, 512, 1) == (1, 8)  # would be 32 parts of 128
    assert kernel.cut(4096, 512, 10**6) == (8, 1)
    assert kernel.cut(100, 512, 1) == (1, 1)


def test_nothing_gives_nothing() -> None:
    made = FORMS["Q4_0"]
    x, parts, *_ = problem(made, torch.float32, 2)
    assert TRITON.grouped_linear(x[:0], parts, made, OUTPUTS).shape == (0, OUTPUTS)


def test_gradients_go_through_the_plain_version() -> None:
    made = FORMS["Q4_K"]
    x, parts, bias, weight = problem(made, torch.float32, 3)
    x.requires_grad_()
    (found,) = torch.autograd.grad(TRITON.grouped_linear(x, parts, made, OUTPUTS, bias).sum(), x)
    assert ulps(found, weight.sum(0).expand(3, -1), weight.abs().sum(0)) <= 1


@pytest.mark.parametrize("made", [Grouped(4, 32, zero=8, tile=16), Grouped(8, 4, zero=128)], ids=["tiles", "groups"])
def test_what_the_kernel_does_not_read_goes_through_the_plain_version(made: Grouped) -> None:
    x, parts, bias, _ = problem(made, torch.float32, 3)
    expected = reference.grouped_linear(x, parts, made, OUTPUTS, bias)
    assert torch.equal(TRITON.grouped_linear(x, parts, made, OUTPUTS, bias), expected)
    with pytest.raises(ValueError, match=r"tiles of 1 and groups of a multiple of 8"):
        kernel.grouped_linear(x, parts, made, OUTPUTS, bias)


MADE = Grouped(4, 32, zero=None)
X, PARTS, BIAS, _ = problem(MADE, torch.float32, 2)
Change = Callable[[Mapping[str, Tensor]], dict[str, Any]]
REFUSED: dict[str, tuple[Change, str]] = {
    "inputs": (lambda _: {"x": X[:, :64]}, r"plane is torch.uint8 \[19, 40, 1, 4\].*expected .* \[19, 8, 1, 4\]"),
    "outputs": (lambda _: {"outputs": 18}, r"plane .* expected contiguous torch.uint8 \[18, 40, 1, 4\]"),
    "type": (lambda parts: {"parts": {**parts, "": parts[""].char()}}, "plane is torch.int8"),
    "scale": (lambda parts: {"parts": {**parts, "_scale": parts["_scale"].float()}}, "scale is torch.float32"),
    "missing": (lambda parts: {"parts": {"": parts[""], "_scale": parts["_scale"]}}, "there is no zero, expected"),
    "strided": (lambda parts: {"parts": {**parts, "": parts[""][:, ::2], "x": X[:, :160]}}, "plane .* with strides"),
    "x": (lambda _: {"x": torch.ones(INPUTS, 2).t()}, "the last dimension of x has stride 2"),
    "bias": (lambda _: {"bias": BIAS[:5]}, r"bias is torch.float32 \[5\]"),
    "type of the bias": (lambda _: {"bias": BIAS.half()}, "bias is torch.float16"),
    "device": (lambda parts: {"parts": {**parts, "_zero": parts["_zero"].to("meta")}}, "zero is on meta, x on cpu"),
    "form": (lambda _: {"made": dataclasses.replace(MADE, bits=5)}, "there is no high, expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    change, message = REFUSED[case]
    given = {"x": X, "parts": PARTS, "made": MADE, "outputs": OUTPUTS, "bias": BIAS, **change(PARTS)}
    with pytest.raises(ValueError, match=message):
        TRITON.grouped_linear(*given.values())
