"""Every op with a Triton kernel against fp64, in the interpreter, forward and backward.

The budget is counted in units of the last place of the output type (eps at the largest expected magnitude): rounding
the result costs half a unit, rounding an operand first (rms_norm's normed x, its weight) half a unit each, and fp32
arithmetic over 512 terms a few fp32 units, which shows in fp32 only. bf16 arithmetic is wrong in Triton's
interpreter, so bf16 stays for a GPU. Outputs are poisoned with NaN: a value that a kernel forgets to write shows.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm import reference
from minillm.ops import CPU, REFERENCE, Ops, select
from minillm.spec import ClampedSwiGLU

TRITON = select("triton", torch.device("cpu"), torch.float32)
PLAIN = (REFERENCE, CPU)  # ops in PyTorch alone
NO_KERNELS = ("__init__", "launch")
KERNELS = Path(__file__).parent.parent / "kernels"
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
WITH_KERNEL = [
    f.name
    for f in dataclasses.fields(Ops)
    if all(getattr(TRITON, f.name) is not getattr(plain, f.name) for plain in PLAIN)
]
# Measured over 8 seeds of every case: forward 2.9 in fp32 and 0.95 in fp16, backward 2.9 and 0.5.
FORWARD_ULPS = {torch.float32: 6.0, torch.float16: 1.5}
BACKWARD_ULPS = {torch.float32: 6.0, torch.float16: 1.0}
SIZES = (1, 3, 127, 129, 512)

Case = tuple[tuple[Tensor, ...], dict[str, Any]]  # differentiable inputs, and the rest by name


def norm_case(size: int, dtype: torch.dtype, offset: float = 0.0, cast: str = "before_weight") -> Case:
    return (torch.randn(2, 3, size).to(dtype), torch.randn(size).to(dtype)), {
        "eps": 1e-5,
        "offset": offset,
        "cast": cast,
    }


def rope_case(size: int, dtype: torch.dtype, layout: str = "half", rest: int = 0, batched: bool = True) -> Case:
    angles = torch.randn(2 if batched else 1, 4, size)
    fixed = {"cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype), "layout": layout}
    return (torch.randn(2, 4, 3, 2 * size + rest).to(dtype),), fixed


def act_case(size: int, dtype: torch.dtype, activation: Any = "silu") -> Case:
    return (torch.randn(3, 2, 2 * size).to(dtype),), {"activation": activation}


VARIANTS: dict[str, list[Callable[[int, torch.dtype], Case]]] = {
    "rms_norm": [
        lambda n, d, offset=offset, cast=cast: norm_case(n, d, offset, cast)
        for offset in (0.0, 1.0)
        for cast in ("before_weight", "after_weight")
    ],
    "rope": [
        lambda n, d, layout=layout, rest=rest, batched=batched: rope_case(n, d, layout, rest, batched)
        for layout in ("half", "interleaved")
        for rest in (0, 1, 30)
        for batched in (True, False)
    ],
    "gated_act": [
        lambda n, d, a=a: act_case(n, d, a) for a in ("silu", "gelu", "gelu_tanh", ClampedSwiGLU(1.702, 0.7))
    ],
}


def ulps(found: Tensor, expected: Tensor, terms: Tensor) -> float:
    """The largest difference in units of found's type at the largest magnitude among `terms`: the result itself, or
    what was summed to it where a sum cancels."""
    unit = torch.finfo(found.dtype).eps * max(float(terms.detach().abs().max()), torch.finfo(found.dtype).tiny)
    return float((found.detach().double() - expected.detach()).abs().max()) / unit


def check(op: str, case: Case, dtype: torch.dtype) -> None:
    inputs, fixed = case
    exact_fixed = {k: v.double() if isinstance(v, Tensor) else v for k, v in fixed.items()}
    exact_inputs = [t.double().requires_grad_() for t in inputs]
    expected = exact(op, exact_inputs, exact_fixed)
    kernel_inputs = [t.clone().requires_grad_() for t in inputs]
    found = getattr(TRITON, op)(*kernel_inputs, **fixed)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert ulps(found, expected, expected) <= FORWARD_ULPS[dtype], "forward"
    gradient = torch.randn(found.shape).to(dtype)
    expected_grads = torch.autograd.grad(expected, exact_inputs, gradient.double())
    found_grads = torch.autograd.grad(found, kernel_inputs, gradient)
    summed = norm_gradient_terms(*exact_inputs, gradient, **fixed) if op == "rms_norm" else expected_grads
    for index, (one, other, terms) in enumerate(zip(found_grads, expected_grads, summed, strict=True)):
        assert ulps(one, other, terms) <= BACKWARD_ULPS[dtype], f"gradient of input {index}"


def norm_gradient_terms(x: Tensor, w: Tensor, g: Tensor, eps: float, offset: float, cast: str) -> tuple[Tensor, Tensor]:
    """What cancels in the gradients: r g w' in that of x (all of it when a row has one value), g x̂ in that of w."""
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return r * g * (w + offset), (g * x * r).abs().sum((0, 1))


def exact(op: str, inputs: list[Tensor], fixed: dict[str, Any]) -> Tensor:
    """The op's formula in fp64 (the reference's own fp32 casts would spoil it)."""
    if op != "rms_norm":
        return getattr(reference, op)(*inputs, **fixed)
    x, w = inputs
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + fixed["eps"]) * (w + fixed["offset"])


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN in every place."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kind: empty(*shape, **kind).fill_(float("nan")))


def test_every_kernel_has_variants() -> None:
    """Here or, where an op has more forms than one, in a file of its own."""
    own = {"attention": "attention", "latent_attention": "mla_decode", "experts": "moe"}
    assert sorted(WITH_KERNEL) == sorted([*VARIANTS, *own])
    for name in own.values():
        assert "test_behind_the_seam" in (Path(__file__).parent / f"test_kernel_{name}.py").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", VARIANTS)
def test_kernel_against_fp64(op: str, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    for variant in VARIANTS[op]:
        check(op, variant(size, dtype), dtype)


@pytest.mark.parametrize("op", VARIANTS)
@settings(max_examples=25)
@given(st.integers(1, 200), st.sampled_from((torch.float32, torch.float16)), st.integers(0, 100), st.data())
def test_kernel_at_drawn_shapes(op: str, size: int, dtype: torch.dtype, seed: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    check(op, data.draw(st.sampled_from(VARIANTS[op]))(size, dtype), dtype)


def test_norm_gradient_over_more_rows_than_programs() -> None:
    """Each program then sums several rows; 700 is no multiple of anything near 256."""
    torch.manual_seed(0)
    inputs, fixed = norm_case(5, torch.float32)
    check("rms_norm", ((torch.randn(7, 100, 5), inputs[1]), fixed), torch.float32)


@pytest.mark.parametrize("op", ["rms_norm", "gated_act"])
def test_kernel_on_rows_that_lie_apart(op: str) -> None:
    """The left part of a wider matrix: rows of stride 20."""
    torch.manual_seed(0)
    inputs, fixed = VARIANTS[op][0](6, torch.float32)
    wide = torch.randn(9, 20, requires_grad=True)
    narrow = wide[:, : inputs[0].shape[-1]]
    found, expected = (run(narrow, *inputs[1:], **fixed) for run in (getattr(TRITON, op), getattr(reference, op)))
    torch.testing.assert_close(found, expected)
    gradient = torch.randn(found.shape)
    torch.testing.assert_close(
        torch.autograd.grad(found, wide, gradient), torch.autograd.grad(expected, wide, gradient)
    )


@pytest.mark.parametrize("op", VARIANTS)
def test_kernel_on_strided_rows_and_on_nothing(op: str) -> None:
    """A slice of a wider tensor, as attention hands it over, gives what its copy gives; empty gives empty."""
    torch.manual_seed(0)
    for variant in VARIANTS[op]:
        inputs, fixed = variant(12, torch.float32)
        wide = torch.randn(*inputs[0].shape[:-2], inputs[0].shape[-2] + 2, inputs[0].shape[-1])
        part = wide[..., 1:-1, :]
        run = getattr(TRITON, op)
        assert torch.equal(run(part, *inputs[1:], **fixed), run(part.contiguous(), *inputs[1:], **fixed))
        if op != "rope":
            assert run(inputs[0][:0], *inputs[1:], **fixed).shape[0] == 0


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        ("rms_norm", lambda: (torch.ones(2, 4), torch.ones(5), 1e-5), "weight is"),
        ("rms_norm", lambda: (torch.ones(4, 2).t(), torch.ones(4), 1e-5), "stride 2"),
        ("rms_norm", lambda: (torch.ones(2, 4), torch.ones(4), 1e-5, 0.0, "never"), "cast is 'never'"),
        ("rope", lambda: (torch.ones(1, 2, 1, 4), torch.ones(1, 2, 3), torch.ones(1, 2, 3)), "6 values to rotate"),
        ("rope", lambda: (torch.ones(1, 2, 1, 4), torch.ones(1, 3, 2), torch.ones(1, 3, 2)), "do not fit"),
        ("rope", lambda: (torch.ones(1, 2, 4, 4).mT, torch.ones(1, 2, 2), torch.ones(1, 2, 2)), "stride 4"),
        ("rope", lambda: (torch.ones(1, 2, 1, 4), torch.ones(1, 2, 2), torch.ones(1, 2, 2), "odd"), "layout is 'odd'"),
        ("gated_act", lambda: (torch.ones(2, 5),), "5 values"),
        ("gated_act", lambda: (torch.ones(4, 2).t(),), "stride 2"),
        ("gated_act", lambda: (torch.ones(2, 4), "relu"), "'relu'"),
    ],
)
def test_what_a_kernel_does_not_take_is_refused_by_name(op: str, inputs: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(TRITON, op)(*inputs())


@pytest.mark.parametrize("module", sorted(path.stem for path in KERNELS.glob("*.py") if path.stem not in NO_KERNELS))
def test_kernels_compile_ahead_of_time(module: str) -> None:
    """For sm_80, sm_90, sm_100 and gfx942, without a GPU; a process of its own, as this one has the interpreter on.
    They fit the shared memory of each and spill no registers on sm_90."""
    script = Path(__file__).parent / "compile_kernels.py"
    done = subprocess.run([sys.executable, str(script), module], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("compiled") == int(done.stdout.split()[-1]) >= 4
    if CUOBJDUMP.exists():
        assert done.stdout.count("nothing spilled") * 4 == done.stdout.count("compiled")


def test_a_decode_step_is_one_graph() -> None:
    """torch.compile(fullgraph=True): rms_norm, rope, attention in two launches and more in each of three layers."""
    script, rows = Path(__file__).parent / "trace_kernels.py", ("llama", "mixtral", "deepseek_v3", "gemma2", "gpt_oss")
    done = subprocess.run([sys.executable, str(script), *rows], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    launched = dict(line.split() for line in done.stdout.splitlines())
    assert list(launched) == list(rows)
    assert all(int(count) >= 3 * 6 for count in launched.values())


def test_select() -> None:
    cpu = torch.device("cpu")
    assert select("auto", cpu, torch.bfloat16) is CPU
    assert select("reference", torch.device("cuda"), torch.bfloat16) is REFERENCE
    with pytest.raises(ValueError, match="wrong values in bfloat16"):
        select("triton", cpu, torch.bfloat16)


def test_triton_on_a_cpu_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="cannot run on device 'cpu'"):
        select("triton", torch.device("cpu"), torch.float32)


def test_auto_falls_back_and_says_so_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert select("auto", torch.device("cuda"), torch.float16) is CPU
    assert capsys.readouterr().err.count("reference kernels in use") == 1
