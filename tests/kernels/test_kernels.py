"""Every op with a Triton kernel against fp64 by one test, in Triton's interpreter; and what kernels have in common.

`helpers/kernel_problems.py` draws the problems. Outputs are poisoned with NaN: a value that a kernel forgets to
write shows. bf16 arithmetic is wrong in the interpreter, so bf16 stays for a GPU (`test_gpu.py`).
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.bench.kernels import WITHOUT
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder
from minillm.ops import CPU, REFERENCE, Ops, select
from minillm.ops.cpu import ops as cpu_ops
from minillm.spec import Decoder as Spec
from tests.conftest import FAST, ROOT
from tests.helpers import kernel_cases
from tests.helpers.kernel_cases import Aligned, Awkward, Case, Pick
from tests.helpers.kernel_problems import BUDGETS, PROBLEMS, hold, normed
from tests.helpers.specs import EXACT, Drawn, build, random_tokens, specs, uncut

CPU_DEVICE = torch.device("cpu")
TRITON = select("triton", CPU_DEVICE, torch.float32)
NO_KERNELS = ("__init__", "launch", "online_softmax", "tuning")
MODULES = sorted(path.stem for path in (ROOT / "kernels").glob("*.py") if path.stem not in NO_KERNELS)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
DTYPES = (torch.float32, torch.float16)


pytestmark = pytest.mark.usefixtures("small_kernels")


def check(op: str, pick: Pick, dtype: torch.dtype) -> None:
    hold(op, PROBLEMS[op](Case(pick, dtype, CPU_DEVICE), TRITON), dtype)


def test_every_op_has_a_kernel_and_a_problem() -> None:
    names = {field.name for field in dataclasses.fields(Ops)} - {"tile", "ranks"}
    with_kernel = {
        name for name in names if all(getattr(TRITON, name) is not getattr(ops, name) for ops in (REFERENCE, CPU))
    }
    assert with_kernel == names - set(WITHOUT)
    assert names == set(PROBLEMS) == set(BUDGETS)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("op", PROBLEMS)
def test_kernel_at_awkward_shapes(op: str, seed: int) -> None:
    check(op, Awkward(seed), DTYPES[seed % 2])


@pytest.mark.parametrize("op", PROBLEMS)
def test_kernel_at_aligned_shapes(op: str) -> None:
    """Multiples of 16, as those of real models are."""
    check(op, Aligned(0, 0.5), torch.float16)


@pytest.mark.parametrize("op", PROBLEMS)
@settings(max_examples=8, **FAST)
@given(st.data(), st.sampled_from(DTYPES))
def test_kernel_at_drawn_shapes(op: str, data: st.DataObject, dtype: torch.dtype) -> None:
    check(op, Drawn(data), dtype)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("op", PROBLEMS)
def test_reference_is_the_formula(op: str, seed: int) -> None:
    """The plain versions, in fp32, give the same numbers; their gradients are PyTorch's business."""
    for name, error in PROBLEMS[op](Case(Awkward(seed), torch.float32, CPU_DEVICE), REFERENCE).items():
        assert error <= 2 * BUDGETS[op]["result"][0] or name.startswith("gradient"), (name, error)


@settings(max_examples=8, **FAST)
@given(specs(), st.lists(st.integers(1, 9), min_size=1, max_size=3))
@torch.no_grad()
def test_any_model_is_the_same_through_the_kernels(drawn: Spec, chunks: list[int]) -> None:
    """A sequence in pieces and token by token through the cache, rings included."""
    plain, tokens = build(drawn), random_tokens(2, sum(chunks) + 3)
    model = Decoder(drawn, TRITON)
    model.load_state_dict(plain.state_dict())
    whole, cache = uncut(plain, tokens), Cache(drawn, 2, tokens.shape[1] + 2, torch.float32)
    pieces = [model(piece, cache) for piece in tokens.split([*chunks, 1, 1, 1], dim=1)]
    assert (torch.cat(pieces, dim=1) - whole).abs().max() <= EXACT


@settings(max_examples=4, **FAST)
@given(specs())
def test_any_model_trains_through_the_kernels(drawn: Spec) -> None:
    plain, tokens = build(drawn), random_tokens(2, 7)
    model = Decoder(drawn, TRITON)
    model.load_state_dict(plain.state_dict())
    uncut(plain, tokens)  # assumes that no expert is as good as a tie
    losses = [each.loss(tokens) for each in (model, plain)]
    assert abs(losses[0] - losses[1]) <= EXACT
    gradients = [torch.autograd.grad(loss, list(each.parameters()), allow_unused=True)
                 for loss, each in zip(losses, (model, plain), strict=True)]  # fmt: skip
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).abs().max() <= EXACT


def test_norm_gradient_over_more_rows_than_programs() -> None:
    """Each program then sums several rows; 700 is no multiple of anything near 256."""
    made = torch.Generator().manual_seed(0)
    x, w = torch.randn(7, 100, 5, generator=made), torch.randn(5, generator=made)
    ours, theirs = ([each.to(kind).requires_grad_() for each in (x, w)] for kind in (torch.float32, torch.float64))
    found = torch.autograd.grad(TRITON.rms_norm(*ours, 1e-5).sum(), ours)
    expected = torch.autograd.grad(normed(*theirs, 1e-5, 0.0).sum(), theirs)
    assert kernel_cases.ulps(found[1], expected[1], x.abs().sum()) <= BUDGETS["rms_norm"]["gradient"][0]


def test_nothing_gives_nothing() -> None:
    assert TRITON.rms_norm(torch.ones(0, 4), torch.ones(4), 1e-5).shape == (0, 4)
    assert TRITON.gated_act(torch.ones(0, 4)).shape == (0, 2)
    assert TRITON.rope(torch.ones(0, 2, 1, 4), torch.ones(1, 2, 2), torch.ones(1, 2, 2)).shape == (0, 2, 1, 4)


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


@pytest.mark.parametrize("part", range(4))
def test_kernels_compile_ahead_of_time(part: int) -> None:
    """For sm_80, sm_90, sm_100 and gfx942, each configuration on one that it is for, without a GPU; in a process of its
    own, as this one has the interpreter on. They fit the shared memory of each and spill no registers on sm_90."""
    script, modules = ROOT / "tests/helpers/compile_kernels.py", MODULES[part::4]
    done = subprocess.run([sys.executable, str(script), "--few", *modules], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, count = done.stdout.splitlines()
    assert len(lines) == int(count)
    for module in modules:
        on = [line.rpartition("on ")[2].split(":")[0] for line in lines if line.startswith(f"{module}.")]
        assert set(on) == {"sm_80", "sm_90", "sm_100", "gfx942"}
    if CUOBJDUMP.exists():
        assert all(line.endswith("nothing spilled") for line in lines if "on sm_90" in line)


def test_a_decode_step_is_one_graph() -> None:
    """torch.compile(fullgraph=True): rms_norm, attention in two launches and more in each of two layers. And it stays
    one as the cache grows, after the one that PyTorch makes for the first length; so does the step that graphs record,
    with the same launches."""
    script, rows = ROOT / "tests/helpers/trace_kernels.py", ("deepseek_v3", "gemma2", "gpt_oss")
    done = subprocess.run([sys.executable, str(script), *rows], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    traced = {name: tuple(map(int, counts)) for name, *counts in map(str.split, done.stdout.splitlines())}
    assert list(traced) == list(rows)
    for graphs, launches, *on_device in traced.values():
        assert graphs == 2
        assert launches >= 2 * 6
        assert on_device == [graphs, launches]


def test_select() -> None:
    cpu = torch.device("cpu")
    assert select("auto", cpu, torch.bfloat16) == Ops(**cpu_ops.OPS, tile=cpu_ops.TILE)
    assert select("reference", torch.device("cuda"), torch.bfloat16) is REFERENCE
    with pytest.raises(ValueError, match="wrong values in bfloat16"):
        select("triton", cpu, torch.bfloat16)


def test_triton_on_a_cpu_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="cannot run on device 'cpu'"):
        select("triton", torch.device("cpu"), torch.float32)


def test_auto_falls_back_and_says_so_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert select("auto", torch.device("cuda"), torch.float16) is CPU
    assert capsys.readouterr().err.count("reference kernels in use") == 1
