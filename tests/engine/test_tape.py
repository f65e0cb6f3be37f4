"""Decode steps on a tape: a replay is the step that it repeats, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.modules import module as everywhere

from minillm.engine import graphs, inference
from minillm.engine.graphs import DecodeGraph
from minillm.engine.tape import Tape
from minillm.model.cache import Cache
from minillm.ops import REFERENCE, select
from minillm.ops.cpu import usable
from minillm.spec import GQA, GatedMLP, Layer, Norm, Rope
from minillm.spec import Decoder as Spec
from tests.engine.test_graphs import prefilled, with_ops
from tests.helpers.specs import build, random_tokens, specs

LOOPS = select("auto", torch.device("cpu"), torch.float32)
LAYER = Layer(Norm(1e-5), GQA(2, 1, 8, Rope(8, 100.0)), Norm(1e-5), GatedMLP(20))
SPEC = Spec(31, 16, (LAYER, LAYER), Norm(1e-5), tied=True, context=64)


@settings(max_examples=25)
@given(specs(), st.integers(1, 3), st.integers(1, 9))
@torch.inference_mode()
def test_a_replay_is_a_step(drawn: Spec, rows: int, prompt: int) -> None:
    """Of any model, at batch 1 to 3, over rings that turn, latents and experts."""
    model, steps = with_ops(build(drawn), LOOPS), 8
    tokens = random_tokens(rows, prompt + steps)
    padding = [0, prompt // 2, prompt - 1][:rows]
    eager, cache = (prefilled(model, tokens[:, :prompt], steps, padding) for _ in range(2))
    recorded = DecodeGraph(model, graphs.on_tape)
    for at in range(prompt, prompt + steps):
        expected = graphs.step(model, tokens[:, at], eager)
        assert torch.equal(recorded(tokens[:, at], cache), expected)
    assert recorded.recording is not None


@torch.inference_mode()
def test_a_tape_keeps_its_memory() -> None:
    """What it has written is not given to others, and what it is given is read where it lies."""
    x = torch.ones(3)
    with Tape() as tape:
        y = torch.empty(3)
        y.copy_(x * 2)
        z = (y + 1).view(3)[1:]
    x.fill_(5)
    others = [torch.zeros(3) for _ in range(50)]
    tape.replay()
    assert y.tolist() == [10, 10, 10]
    assert z.tolist() == [11, 11]
    assert not any(each.any() for each in others)


@torch.inference_mode()
@pytest.mark.parametrize(
    "op",
    [
        lambda x: x.clamp(min=x.mean()),  # of clamp, index and sum more than one overload writes into a tensor
        lambda x: x.clamp(max=2.0),
        lambda x: x[torch.tensor([2, 0])],
        lambda x: x.sum(),
        lambda x: x.view(1, 3).sum(-1, keepdim=True),
        lambda x: x.topk(2).values,
        lambda x: x.pow(2) / 3 + x,
    ],
)
def test_an_op_is_repeated_by_its_own_overload(op: object) -> None:
    x = torch.tensor([1.0, 5.0, 3.0])
    with Tape() as tape:
        y = op(x)  # type: ignore[operator]
    x.copy_(torch.tensor([2.0, -4.0, 9.0]))
    tape.replay()
    assert torch.equal(y, op(x))  # type: ignore[operator]


@torch.inference_mode()
@pytest.mark.parametrize("read", [lambda x: x[x > 0], lambda x: x.sum().item(), lambda x: torch.bincount(x.long())])
def test_what_the_host_reads_is_not_recorded(read: object) -> None:
    with pytest.raises(RuntimeError, match="gives the host what changes"), Tape():
        read(torch.ones(3))  # type: ignore[operator]


@torch.inference_mode()
def test_a_step_that_cannot_be_recorded_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    def refuses(run: object, device: object) -> None:
        raise RuntimeError("no tape\nto be had")

    model = with_ops(build(SPEC), LOOPS)
    cache, eager = (Cache(SPEC, 1, 9, torch.float32) for _ in range(2))
    graph = DecodeGraph(model, refuses)  # type: ignore[arg-type]
    for token in (3, 4, 5):
        assert torch.equal(graph(torch.tensor([token]), cache), graphs.step(model, torch.tensor([token]), eager))
    assert capsys.readouterr().err == "minillm: decode steps go call by call, none is recorded: no tape\n"


class Added:
    """Python in the pass of a model's first layer: how often it ran, and how to take it out again."""

    def __init__(self, how: str, layer: torch.nn.Module):
        self.calls, own = 0, layer.forward
        if how == "forward":
            layer.forward = lambda *given: self.count() or own(*given)
            self.remove = lambda: delattr(layer, "forward")
        else:
            register = getattr(everywhere if how.startswith("register_module") else layer, how)
            self.remove = register(lambda module, *call: self.count() if module is layer else None).remove

    def count(self) -> None:
        self.calls += 1


PLACES = (
    "forward",
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_module_forward_hook",
    "register_module_forward_pre_hook",
)


@torch.inference_mode()
@pytest.mark.parametrize("how", PLACES)
def test_a_users_python_runs_in_every_step(how: str) -> None:
    """Whenever it came and went; the recording serves again behind it."""
    model = with_ops(build(SPEC), LOOPS)
    cache, eager = (Cache(SPEC, 1, 20, torch.float32) for _ in range(2))

    def steps(count: int) -> None:
        for token in range(count):
            found = inference.decode(model, [token], cache)
            assert torch.equal(found, graphs.step(model, torch.tensor([token]), eager))

    steps(4)
    before = cache.graph.recording
    assert before is not None
    added = Added(how, model.layers[0])
    steps(5)
    assert added.calls == 2 * 5  # here and in the model that it is compared with
    added.remove()
    steps(3)
    assert added.calls == 2 * 5
    assert cache.graph.recording is before


@torch.inference_mode()
def test_a_users_module_runs_in_every_step() -> None:
    """One that stands in a layer when the text begins."""
    model, calls = with_ops(build(SPEC), LOOPS), []
    ffn = model.layers[0].ffn

    class Around(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return ffn(x)

    model.layers[0].ffn = Around()
    cache = Cache(SPEC, 1, 20, torch.float32)
    for token in range(6):
        inference.decode(model, [token], cache)
    assert len(calls) == 6


@torch.inference_mode()
def test_a_recording_is_not_made_nor_used_where_loops_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_ops(build(SPEC), LOOPS)
    cache = Cache(SPEC, 1, 9, torch.float32)
    monkeypatch.setattr(usable, "forked", True)
    for token in (3, 4, 5):
        inference.decode(model, [token], cache)
    assert cache.graph.recording is None
    monkeypatch.setattr(usable, "forked", False)
    for token in (3, 4):
        inference.decode(model, [token], cache)
    recording = cache.graph.recording
    monkeypatch.setattr(usable, "forked", True)
    monkeypatch.setattr(recording, "replay", None)
    inference.decode(model, [3], cache)


def test_plain_ops_are_not_recorded() -> None:
    plain = build(SPEC)
    assert graphs.recorder(with_ops(plain, REFERENCE)) is None
    assert graphs.recorder(with_ops(plain, LOOPS)) is graphs.on_tape


def test_a_recording_imports_no_compiler() -> None:
    """It takes a second or two, in the middle of an answer."""
    lines = "with Tape(): torch.zeros(2) + 1", "assert 'torch._dynamo' not in sys.modules"
    code = "\n".join(["import sys, torch", "from minillm.engine.tape import Tape", *lines])
    subprocess.run([sys.executable, "-c", code], check=True)
