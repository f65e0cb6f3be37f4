"""Where no loop may run: on memory that is not this machine's, in what PyTorch traces, in a forked process."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import minillm
from minillm.ops.cpu import matrices
from minillm.ops.cpu import ops as cpu_ops
from minillm.ops.cpu.loops import jit
from minillm.ops.stacked import GroupedMatrices
from minillm.weights.ints import Int4
from tests.helpers.kernel_cases import Aligned, Awkward, Case
from tests.helpers.kernel_problems import PROBLEMS
from tests.ops.test_cpu_ops import LOOPS

TOKENS = torch.tensor([[1, 5, 9, 3, 7]])
EXACT = 2e-5  # as in test_laws.py; a compiled pass was off by 1.1e-5 of logits up to 5.6


class Other(Tensor):
    """May hold anything."""


class Reached(Exception):
    pass


def elsewhere(value: Any) -> Iterator[Any]:
    """A value with one of its tensors on another device or of another class, each in turn."""
    if isinstance(value, Tensor):
        yield value.to("meta")
        yield value.as_subclass(Other)
    elif isinstance(value, tuple) and not hasattr(value, "_fields"):
        yield from ((*value[:i], moved, *value[i + 1 :]) for i, each in enumerate(value) for moved in elsewhere(each))
    elif isinstance(value, dict):
        yield from ({**value, name: moved} for name, part in value.items() for moved in elsewhere(part))
    elif dataclasses.is_dataclass(value) and type(value).__name__.endswith("Matrices"):
        for field in dataclasses.fields(value):
            for moved in elsewhere(getattr(value, field.name)):
                yield dataclasses.replace(value, **{field.name: moved})  # type: ignore[type-var]


@pytest.mark.parametrize("op", sorted(set(cpu_ops.OPS) - {"sample"}))
def test_a_loop_is_given_this_machines_memory(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an op goes as in plain PyTorch, which names the devices that do not fit."""
    monkeypatch.setattr(matrices, "FEW_ROWS", 1000)
    loop, met = cpu_ops.OPS[op], []

    def reached(*given: Any, **named: Any) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jit, "ready", raises)
            try:
                with torch.no_grad():
                    loop(*given, **named)
            except (RuntimeError, NotImplementedError):
                return False
            except Reached:
                return True
        return False

    def raises() -> None:
        raise Reached

    def spied(*given: Any, **named: Any) -> Any:
        here = [each.contiguous() if isinstance(each, Tensor) else each for each in given]
        if reached(*here, **named):
            met.append(op)
            # Where matrices are written out by a loop, only they must be here.
            first = 3 if any(isinstance(each, GroupedMatrices) for each in here) else 0
            for i, value in enumerate(here[first:], first):
                for moved in elsewhere(value):
                    assert not reached(*here[:i], moved, *here[i + 1 :], **named), f"argument {i}"
        return loop(*given, **named)

    for seed in range(4):
        case = Case(Awkward(seed) if seed % 2 else Aligned(seed), torch.float32, torch.device("cpu"))
        PROBLEMS[op](case, dataclasses.replace(LOOPS, **{op: spied}))
    integers = Int4(32, symmetric=False)
    form = dataclasses.replace(integers.form, tile=cpu_ops.TILE)
    if op == "grouped_linear":  # whose problem draws forms that the loops do not know
        spied(torch.randn(2, 64), form.pack(integers.quantise(torch.randn(20, 64))), form, 20, torch.randn(20))
    if op == "experts":
        held = []
        for outputs, inputs in ((32, 64), (64, 16)):
            made = [form.pack(integers.quantise(torch.randn(outputs, inputs))) for _ in range(2)]
            parts = {name: torch.stack([each[name] for each in made]) for name in made[0]}
            held.append(GroupedMatrices(parts, form, outputs, inputs, torch.float32))
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(3, 64).to(dtype)
            spied(x, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1), *held, "silu")
    assert met


@torch.no_grad()
def test_a_model_on_another_device(saved: Path) -> None:
    llm = minillm.load(saved, device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert llm.model(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, llm.spec.vocab_size)
    with pytest.raises(RuntimeError, match="device meta is not on the expected device cpu"):
        llm.model(TOKENS.to("meta"))
    before = llm.model(TOKENS)  # nothing of the stand-ins has stayed
    assert before.isfinite().all()
    assert llm.model.to("meta")(TOKENS.to("meta")).device.type == "meta"


def test_a_default_device_changes_nothing(saved: Path) -> None:
    def texts() -> list[list[int]]:
        llm = minillm.load(saved, device="cpu")
        options: list[dict[str, Any]] = [{"temperature": 0.9, "seed": 3}, {"presence_penalty": 1.0}]
        return [llm.generate(prompt_ids=[1, 5], max_new_tokens=5, **each).token_ids for each in options]  # type: ignore[union-attr]

    expected = texts()
    torch.set_default_device("meta")
    try:
        assert texts() == expected
    finally:
        torch.set_default_device(None)


WAYS: dict[str, Callable[[Any], Any]] = {
    "compile": lambda model: torch.compile(model, backend="aot_eager"),
    "export": lambda model: torch.export.export(model, (TOKENS,)).module(),
    "trace": lambda model: torch.jit.trace(model, (TOKENS,), check_trace=False),
    "make_fx": lambda model: torch.fx.experimental.proxy_tensor.make_fx(model)(TOKENS),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantize", [None, "int4"])
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_what_is_traced_is_the_model(way: str, quantize: str | None, saved: Path) -> None:
    model = minillm.load(saved, dtype="float32", device="cpu", quantize=quantize).model
    expected = model(TOKENS)
    assert (WAYS[way](model)(TOKENS) - expected).abs().max() <= EXACT
    assert torch.equal(model(TOKENS), expected)  # and the model itself goes on as before


@torch.no_grad()
def test_a_mode_that_counts_sees_the_products(saved: Path) -> None:
    model = minillm.load(saved, device="cpu").model
    with FlopCounterMode(display=False) as counted:
        model(TOKENS)
    matrices_of = [p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embedding" not in name]
    assert counted.get_total_flops() >= 2 * TOKENS.numel() * sum(matrices_of)


FORKS = """
import multiprocessing as mp, sys, minillm
llm = minillm.load(sys.argv[1], device="cpu")
ask = lambda: llm.generate(prompt_ids=[1, 5], max_new_tokens=5).token_ids
context, own = mp.get_context("fork"), ask()
queue = context.Queue()
def work(): queue.put(ask()); queue.put(ask())
child = context.Process(target=work)
child.start()
child.join(60)
if child.exitcode is None: child.kill()
print(child.exitcode, child.exitcode == 0 and queue.get() == queue.get() == own)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_process_goes_on_in_pytorch(saved: Path) -> None:
    """It says so once. The loops' threads are the parent's, and OpenMP ends a process that would start others."""
    done = subprocess.run([sys.executable, "-c", FORKS, str(saved)], capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["0", "True"], done.stderr
    assert done.stderr.count("minillm: plain PyTorch on one thread in use: this process was forked") == 1
