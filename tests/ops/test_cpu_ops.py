"""The CPU's compiled loops: against fp64 like every kernel, a row alone against a row among others, and what they leave
to PyTorch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm import ops
from minillm.ops import CPU, REFERENCE, Ops, reference
from minillm.ops.cpu import matrices
from minillm.ops.cpu import ops as cpu_ops
from minillm.ops.cpu.loops.dots import NATIVE_BF16
from minillm.ops.visibility import Visibility
from minillm.spec import CappedSwiGLU, ClampedSwiGLU
from minillm.weights.ints import Int4, Int8
from tests.helpers.attention_problems import attended, visible_keys, window_of
from tests.helpers.kernel_cases import Aligned, Awkward, Case, Pick, exact, ulps
from tests.helpers.kernel_problems import BUDGETS, PROBLEMS
from tests.helpers.product_problems import meant
from tests.helpers.specs import Drawn

LOOPS = Ops(**cpu_ops.OPS, tile=cpu_ops.TILE)
CPU_DEVICE = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = ("silu", "gelu_tanh", ClampedSwiGLU(1.702, 0.7), ClampedSwiGLU(1.0, 0.7, 0.0), CappedSwiGLU(0.7))
WITH_GRADIENTS = ("rms_norm", "gated_act")  # their problems ask for gradients, which loops leave to PyTorch


@pytest.fixture(scope="module", autouse=True)
def every_size() -> Iterator[None]:
    """Loops take any number of rows, so that the problems' sizes reach them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "FEW_ROWS", 1000)
        yield


def held(op: str, pick: Pick, dtype: torch.dtype) -> None:
    """An op's results to its budget, in fp32 to twice that, as plain versions are; gradients are PyTorch's business."""
    for name, error in PROBLEMS[op](Case(pick, dtype, CPU_DEVICE), LOOPS).items():
        exact_sums, rounded = BUDGETS[op]["result"]
        assert error <= (2 * exact_sums if dtype == torch.float32 else rounded) or name.startswith("gradient")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", sorted(set(cpu_ops.OPS) - set(WITH_GRADIENTS)))
def test_loops_are_the_formula(op: str, dtype: torch.dtype) -> None:
    for seed in range(6):
        for pick in (Awkward(seed), Aligned(seed)):
            held(op, pick, dtype)


@settings(max_examples=40)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(("linear", "grouped_linear", "attention")))
def test_loops_at_drawn_shapes(data: st.DataObject, dtype: torch.dtype, op: str) -> None:
    held(op, Drawn(data), dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 15, 16, 97, 512])
def test_norms_and_activations(size: int, dtype: torch.dtype) -> None:
    case = Case(Awkward(size), dtype, CPU_DEVICE)
    x, w = case.values(3, size), case.values(size)
    for offset in (0.0, 1.0):
        for cast in ("before_weight", "after_weight"):
            expected = reference.rms_norm(x.double(), w.double(), 1e-5, offset)
            found = LOOPS.rms_norm(x, w, 1e-5, offset, cast)
            assert ulps(found, expected) <= BUDGETS["rms_norm"]["result"][dtype != torch.float32]
    both = case.values(3, 2 * size) * 3
    for activation in ACTIVATIONS:
        found, expected = LOOPS.gated_act(both, activation), reference.gated_act(both.double(), activation)
        assert ulps(found, expected) <= BUDGETS["gated_act"]["result"][dtype != torch.float32]


@torch.no_grad()
def test_activations_at_the_ends() -> None:
    """Through one expert of one value in and out, whose gate is the input and whose up is 1."""
    gates = torch.tensor([-1e4, -89.0, -3.0, -0.0, 0.0, 1e-30, 2.0, 89.0, 1e4])[:, None]
    ones, chosen = torch.ones(9, 1), torch.zeros(9, 1, dtype=torch.int64)
    biases = torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1)
    for activation in ACTIVATIONS:
        given = (gates, chosen, ones, torch.tensor([[[1.0], [0.0]]]), torch.ones(1, 1, 1), activation, biases)
        found, expected = LOOPS.experts(*given), reference.gated_act(torch.cat((gates, ones), 1).double(), activation)
        assert ((found - expected).abs() <= 1e-34 + 4 * torch.finfo(torch.float32).eps * gates.abs()).all()
        assert torch.equal(LOOPS.gated_act(torch.cat((gates, ones), 1), activation), found)
    assert LOOPS.experts(gates * float("nan"), *given[1:]).isnan().all()


Row = Callable[[Tensor], Tensor]


def products(data: st.DataObject, dtype: torch.dtype) -> tuple[Row, Tensor]:
    """A product with a drawn matrix of a drawn format, and rows for it."""
    rows, outputs, inputs = (data.draw(st.integers(1, most)) for most in (16, 12, 2100))
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(rows, inputs, generator=made).to(dtype)
    bias = data.draw(st.sampled_from((None, torch.randn(outputs, generator=made).to(dtype))))
    if (kind := data.draw(st.sampled_from(("plain", "int8", "int4")))) == "plain":
        w = torch.randn(outputs, inputs, generator=made).to(dtype)
        return lambda x: LOOPS.linear(x, w, bias), x
    w = torch.randn(outputs, inputs, generator=made)
    integers = Int8() if kind == "int8" else drawn_int4(data)
    form = replace(integers.form, tile=LOOPS.tile)
    parts = form.pack(integers.quantise(w))
    return lambda x: LOOPS.grouped_linear(x, parts, form, outputs, bias), x


def drawn_int4(data: st.DataObject) -> Int4:
    return Int4(data.draw(st.sampled_from((16, 32, 64, 96, 128, 256))), data.draw(st.booleans()))


@settings(max_examples=100)
@given(st.data(), st.sampled_from(DTYPES), st.booleans())
@torch.no_grad()
def test_integers_are_what_they_stand_for(data: st.DataObject, dtype: torch.dtype, few: bool) -> None:
    """As they lie, and written out for many rows; in fp64 with the weights as they are, not rounded to the dtype."""
    outputs, inputs = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 700))
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x, w = torch.randn(3, inputs, generator=made).to(dtype), torch.randn(outputs, inputs, generator=made)
    budget = 6 if dtype == torch.float32 else 1.0 if few else 1.5  # written out each weight is rounded, half a unit
    for integers in (Int8(), drawn_int4(data)):
        form, fields = replace(integers.form, tile=LOOPS.tile), integers.quantise(w)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matrices, "FEW_ROWS", 3 if few else 0)
            patch.setattr(reference, "grouped_linear", None)
            y = LOOPS.grouped_linear(x, form.pack(fields), form, outputs)
        matrix = meant(form, fields)
        assert ulps(y, x.double() @ matrix.t(), x.double().abs() @ matrix.abs().t()) <= budget


@settings(max_examples=150)
@given(st.data(), st.sampled_from(DTYPES))
@torch.no_grad()
def test_a_row_is_what_it_is_alone(data: st.DataObject, dtype: torch.dtype) -> None:
    """Bit for bit: the order of a row's sums does not depend on how many rows there are."""
    run, x = products(data, dtype)
    assert torch.equal(run(x), torch.cat([run(row[None]) for row in x]))


@settings(max_examples=60)
@given(st.data(), st.sampled_from(DTYPES))
@torch.no_grad()
def test_a_sequence_is_what_it_is_alone(data: st.DataObject, dtype: torch.dtype) -> None:
    """Attention of a padded batch, of several queries at once, and over a ring: bit for bit that of one query."""
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    heads, queries, past, size = 4, data.draw(st.integers(1, 5)), data.draw(st.integers(0, 700)), 24
    window = data.draw(st.sampled_from((None, 7, 300)))
    end = past + queries
    padding = [0, data.draw(st.integers(0, past))]
    q, k, v = (torch.randn(2, n, m, size, generator=made).to(dtype) for n, m in ((heads, queries), (2, end), (2, end)))
    visible = Visibility(past, queries, None, torch.tensor(padding), CPU_DEVICE)
    first = 0
    if window and window < end:
        first = past - min(past, window - 1)
        visible = Visibility(past, queries, window, torch.tensor(padding), CPU_DEVICE)
    given_k, given_v = k[:, :, first:], v[:, :, first:]
    if visible.ring:
        given_k, given_v = k[:, :, visible.key_positions], v[:, :, visible.key_positions]
    found = LOOPS.attention(q, given_k, given_v, visible)
    for b, pad in enumerate(padding):
        for t in range(queries):
            lowest = max(pad, past + t - window + 1) if window and window < end else pad
            keys = slice(min(lowest, past + t), past + t + 1)
            alone = Visibility(keys.stop - keys.start - 1, 1, None, None, CPU_DEVICE)
            one = LOOPS.attention(q[b : b + 1, :, t : t + 1], k[b : b + 1, :, keys], v[b : b + 1, :, keys], alone)
            assert torch.equal(found[b : b + 1, :, t : t + 1], one)


@settings(max_examples=30)
@given(st.integers(1, 16), st.integers(0, 99), st.sampled_from(DTYPES), st.sampled_from(ACTIVATIONS))
@torch.no_grad()
def test_a_token_has_its_experts_alone(tokens: int, seed: int, dtype: torch.dtype, activation: Any) -> None:
    made = torch.Generator().manual_seed(seed)
    x, gate_up, down = (torch.randn(s, generator=made).to(dtype) for s in ((tokens, 70), (5, 34, 70), (5, 70, 17)))
    chosen = torch.stack([torch.randperm(5, generator=made)[:3] for _ in range(tokens)])
    weights = torch.rand(tokens, 3, generator=made)
    together = LOOPS.experts(x, chosen, weights, gate_up, down, activation)
    each = [LOOPS.experts(x[n : n + 1], chosen[n : n + 1], weights[n : n + 1], gate_up, down, activation)
            for n in range(tokens)]  # fmt: skip
    assert torch.equal(together, torch.cat(each))


@pytest.mark.skipif(not NATIVE_BF16, reason="for processors that multiply bf16")
@settings(max_examples=40)
@given(st.data())
@torch.no_grad()
def test_attention_of_a_prompt(data: st.DataObject) -> None:
    """In bf16: half a unit for rounding each weight and half for the result."""
    case = Case(Drawn(data), torch.bfloat16, CPU_DEVICE)
    kv_heads, size, v = case.size(2), 2 * case.size(40), window_of(case, case.of((0, case.size(129))))
    heads, value_size, keys = kv_heads * case.size(3), case.of((64, 128)), len(v.key_positions)
    q, k = case.values(2, v.count, heads, size).transpose(1, 2), case.values(2, kv_heads, keys + 2, size)[:, :, 1:-1]
    values, seen, cap = case.values(2, kv_heads, keys, value_size), visible_keys(v), case.of((None, 5.0))
    if v.ring:
        return  # one query: none of this
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "FEW_ROWS", 0)
        patch.setattr(reference, "attention", None)
        found = LOOPS.attention(q, k, values, v, None, cap)
    doubles = exact(q, k, values)
    most = attended(*doubles[:2], doubles[2].abs(), seen, None, cap)
    assert ulps(found, attended(*doubles, seen, None, cap), most) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("few", [True, False], ids=["few queries", "a prompt"])
@torch.no_grad()
def test_a_cap_far_above_the_scores_changes_nothing(few: bool, dtype: torch.dtype, monkeypatch: Any) -> None:
    """A tanh made of a rounded e**2x is off by c units of a score, 0.1 for this c: a small one must keep its digits."""
    monkeypatch.setattr(matrices, "FEW_ROWS", 1000 if few else 0)
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 40, 64, generator=made).to(dtype) for heads in (4, 2, 2))
    visible = Visibility(0, 40, None, None, CPU_DEVICE)
    capped, plain = LOOPS.attention(q, k, v, visible, None, 1e6), LOOPS.attention(q, k, v, visible)
    most = attended(*exact(q, k, v.abs()), visible_keys(visible))
    assert ulps(capped, plain.double(), most) <= BUDGETS["attention"]["result"][dtype != torch.float32]


def test_what_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows, gradients, fp64, views and groups of another size: no loop is called, and the result is right."""
    monkeypatch.setattr("minillm.ops.cpu.loops.linear.linear", None)
    monkeypatch.setattr(matrices, "FEW_ROWS", 16)
    x, w = torch.randn(17, 8), torch.randn(6, 8)
    assert torch.equal(LOOPS.linear(x, w), torch.nn.functional.linear(x, w))
    assert LOOPS.linear(x[:1], w.clone().requires_grad_()).requires_grad
    for row, matrix in ((x[:2].double(), w.double()), (x[:1], torch.randn(8, 6).t()), (x.t()[:2, :8], w)):
        assert torch.equal(LOOPS.linear(row, matrix), torch.nn.functional.linear(row, matrix))
    form = replace(Int4(4).form, tile=LOOPS.tile)
    given = form.pack(Int4(4).quantise(w)), form, 6
    assert torch.equal(LOOPS.grouped_linear(x[:1], *given), reference.grouped_linear(x[:1], *given))
    with pytest.raises(TypeError):
        LOOPS.linear(x[:1], w)


def test_threads_are_pytorchs() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            LOOPS.linear(torch.ones(1, 4), torch.ones(4, 4))
            assert numba.get_num_threads() == min(threads, numba.config.NUMBA_NUM_THREADS)
    finally:
        torch.set_num_threads(before)


def test_the_first_loop_leaves_pytorchs_threads_alone() -> None:
    """In a process of its own: numba starts its pool, and sets OpenMP's number of threads, once."""
    script = """
import torch
from minillm.ops.cpu import ops
torch.set_num_threads(1)
ops.OPS["linear"](torch.ones(1, 4), torch.ones(4, 4))
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_without_numba(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ops.select("auto", CPU_DEVICE, torch.float32) is CPU
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no package numba; install it" in err
    assert ops.select("reference", CPU_DEVICE, torch.float32) is REFERENCE
