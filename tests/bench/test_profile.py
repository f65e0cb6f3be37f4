"""Profile mode: every part is seen, times are each part's own, and what it says of bytes and operations adds up."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm import config, families
from minillm.bench import __main__ as bench
from minillm.bench import profile
from minillm.bench.hooks import Timer, part_of, watched
from minillm.bench.profile import costs, sampled, summary
from minillm.engine import inference
from minillm.hub import DEMO
from minillm.loading import load
from minillm.model.cache import Cache
from minillm.model.costs import cached_values_seen, prefill_flops
from minillm.model.decoder import skeleton
from minillm.report import measure

LAYER = {"layer", "attention_norm", "attention", "attention.qkv", "attention.out", "ffn_norm", "ffn"}
AROUND = {"embedding", "norm", "head"}


def test_a_part_has_the_time_that_is_its_own() -> None:
    clock = iter([0, 1, 3, 4, 9, 10])  # an outer call with two inside, of 2 and of 5
    timer = Timer(lambda: next(clock))
    timer.begin()
    for _ in range(2):
        timer.begin()
        timer.end("inner")
    timer.end("outer")
    assert (timer.seconds, timer.calls) == ({"inner": 7, "outer": 3}, {"inner": 2, "outer": 1})


@pytest.mark.parametrize(
    ("family", "inside"),
    [
        ("mixtral", {"ffn.router", "ffn.experts"}),
        ("deepseek_v2", {"ffn.router", "ffn.experts", "ffn.shared", "ffn.gate_up", "ffn.down"}),
    ],
)
def test_every_part_is_seen(mixtures: Path, family: str, inside: set[str]) -> None:
    """Each once for each layer that has it, and nothing stays hooked."""
    model = load(mixtures / family, "float32", "cpu", "reference").model
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    timer = Timer(itertools.count().__next__)
    with watched(model, timer):
        model(torch.arange(5)[None], Cache(model.spec, 1, 5, torch.float32))
    parts = {part_of(name) for name, each in model.named_modules() if each.__class__.__name__ in ("Linear", "Norm")}
    assert set(timer.calls) >= LAYER - {"attention.qkv"} | AROUND | inside | parts
    assert set(timer.calls) <= {part_of(name) for name in before} | {"head"}
    layers = len(model.layers)
    assert {timer.calls[part] for part in ("layer", "attention", "ffn_norm", "ffn")} == {layers}
    x = 5 * model.spec.hidden_size * 4
    assert timer.activations["norm"] == 2 * x
    assert timer.activations["ffn_norm"] == 4 * x * layers  # two summands, the sum and its norm
    assert timer.activations["attention"] == 0
    assert timer.calls["ffn.experts"] == sum(hasattr(layer.ffn, "experts") for layer in model.layers)
    calls = sum(timer.calls.values())
    assert sum(timer.seconds.values()) == 2 * calls - (layers + 2)  # all of what embedding, layers and head span
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("held", [{"kernels": "reference"}, {"quantize": "int8"}, {"quantize": "int4"}])
def test_costs_add_up(mixtures: Path, held: dict[str, Any], tied: bool) -> None:
    """To what a step reads and a prompt takes, in whatever form the weights are held."""
    llm = load(DEMO if tied else mixtures / "mixtral", "bfloat16", "cpu", **held)
    assert llm.spec.tied == tied
    step = costs(llm, 1, 20)
    cached = 2 * cached_values_seen(llm.spec, 21)
    assert sum(nbytes for nbytes, _ in step.values()) == pytest.approx(llm.bytes_per_step + cached, rel=1e-3)
    plain = skeleton(llm.spec, torch.bfloat16)
    assert sum(flops for _, flops in costs(llm, 20, 0).values()) == prefill_flops(plain, 20)


def test_shares_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over the faster half, of which the parts and what is unaccounted for are all."""
    llm = load(DEMO, "float32", "cpu", "reference")
    hooked = []
    for total, head in ((8.0, 1.0), (4.0, 2.0), (100.0, 50.0), (90.0, 60.0)):
        timer = Timer(lambda: 0.0)
        timer.seconds["head"], timer.calls["head"] = head, 1
        timer.seconds["layer"], timer.calls["layer"] = 2.0, 4
        hooked.append((total, timer))
    plain = [(seconds, Timer(lambda: 0.0)) for seconds in (5.0, 3.0, 9.0)]
    found = summary(llm, plain, hooked, 1, 10, copy=1e6, peak=1e9)
    assert (found["seconds"], found["seconds_with_hooks"], found["unaccounted_seconds"]) == (4.0, 6.0, 2.5)
    layer, head = found["parts"]
    assert (layer["part"], layer["kind"], layer["calls"], layer["share"]) == ("layer", "Block", 4, 2 / 6)
    nbytes, flops = costs(llm, 1, 10)["head"]
    assert (head["bytes"], head["flops"], head["seconds"]) == (nbytes, flops, 1.5)
    assert (head["copy_share"], head["matrix_share"]) == (nbytes / 1.5 / 1e6, flops / 1.5 / 1e9)
    assert head["roofline_share"] == max(head["copy_share"], head["matrix_share"])


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A table and a picture, or JSON alone; both steps with every part."""
    monkeypatch.setattr(measure, "COPY_BYTES", 2**16)
    monkeypatch.setattr(measure, "MATRIX_SIZES", (64,))
    monkeypatch.setattr(profile, "ROUNDS", 1)
    picture = tmp_path / "roof.png"
    given = ["profile", "--weights", str(DEMO), "--prompt-tokens", "9"]
    assert bench.main([*given, "--plot", str(picture)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert (report["shape"], report["prompt"]) == ("demo", 9)
    for kind in ("decode", "prefill"):
        step = report[kind]
        parts = {each["part"] for each in step["parts"]}
        assert parts == LAYER | AROUND | {"ffn.gate_up", "ffn.down"}
        accounted = sum(each["seconds"] for each in step["parts"])
        assert accounted + step["unaccounted_seconds"] == pytest.approx(step["seconds_with_hooks"])
        assert 0 < accounted <= step["seconds_with_hooks"]
        assert all(any(line.startswith(f"| {part} |") for line in lines) for part in parts)
    plain = skeleton(families.resolve(config.read(DEMO))[0], torch.bfloat16)
    assert report["prefill"]["flops"] == prefill_flops(plain, 9)
    assert sum(line.startswith("| unaccounted") for line in lines) == 2
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert bench.main([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == report.keys()


def test_samples_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many with hooks as without, whose timers have seen nothing; either kind has warmed up before."""
    calls, prefill = [], inference.prefill
    monkeypatch.setattr(inference, "prefill", lambda *given: calls.append(given) or prefill(*given))
    monkeypatch.setattr(profile, "ROUNDS", 2)
    found = sampled(load(DEMO, "float32", "cpu", "reference"), 5)
    assert len(calls) == 2 * (1 + 2)
    assert [len(samples) for samples in found["prefill"]] == [2, 2]
    assert [len(samples) for samples in found["decode"]] == [2 * profile.STEPS] * 2
    for plain, hooked in found.values():
        assert not any(timer.calls for _, timer in plain)
        assert all(timer.calls["layer"] == 4 for _, timer in hooked)
