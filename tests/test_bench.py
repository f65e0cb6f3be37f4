"""The bench: it measures what it says and its last line is JSON. No test looks at how fast anything was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from minillm import bench, bench_kernels, families, ops, quantised
from minillm.families.shapes import SHAPES
from minillm.hub import DEMO
from minillm.loading import load
from minillm.measure import bytes_per_step, copy_bandwidth, peak_memory
from minillm.model import skeleton

COUNTS = {
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
    "qwen3-moe-1.3b": 1_305_243_648,
}


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    few = ["--prompt-tokens", "9", "--new-tokens", "3", "--rounds", "2"]
    assert bench.main([*arguments, *few]) == 0
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def test_against_transformers(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(capfd, monkeypatch, "--weights", str(DEMO), "--against", "transformers")
    engines = report["engines"]
    assert set(engines) == {"minillm", "transformers"}
    for kind in ("decode_tokens_per_second", "prefill_tokens_per_second"):
        assert report["ratios"][kind] == engines["minillm"][kind] / engines["transformers"][kind] > 0
    assert engines["minillm"]["dtype"] == engines["transformers"]["dtype"] == "torch.bfloat16"


def test_alone(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(capfd, monkeypatch, "--dtype", "float32")
    assert set(report["engines"]) == {"minillm"}
    assert "ratios" not in report
    assert 0 < report["engines"]["minillm"]["bandwidth_share"] < 10


def test_random_weights_of_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**SHAPES["qwen3-0.6b"], "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100, "head_dim": 8}
    monkeypatch.setitem(SHAPES, "small", {**small, "intermediate_size": 96})
    bench.write_random(tmp_path, "small")
    llm = load(tmp_path, kernels="reference")
    norms = [p for n, p in llm.model.named_parameters() if "norm" in n]
    assert norms
    assert all((norm == 1).all() for norm in norms)
    assert llm.model.layers[0].ffn.down.weight.float().std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_published_size(shape: str) -> None:
    spec, _, config = families.resolve(SHAPES[shape])
    assert sum(parameter.numel() for parameter in skeleton(spec, torch.bfloat16).parameters()) == COUNTS[shape]
    assert config.unread == []


def test_bytes_per_step() -> None:
    """All weights; the embedding only when it is the head too."""
    tied = load(dtype="float32", kernels="reference").model
    assert bytes_per_step(tied) == 4 * sum(parameter.numel() for parameter in tied.parameters())
    small = {**SHAPES["qwen3-0.6b"], "tie_word_embeddings": False, "vocab_size": 10, "num_hidden_layers": 1}
    untied = skeleton(families.resolve(small)[0], torch.float32)
    everything = 4 * sum(parameter.numel() for parameter in untied.parameters())
    assert bytes_per_step(untied) == everything - 4 * untied.embedding.weight.numel()


@pytest.mark.parametrize("held", [False, True])
def test_bytes_per_step_of_a_mixture(held: bool) -> None:
    """Of 64 experts a token reads the 8 that it chose, and of held fp8 their factors too; the router is fp32."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 128, "moe_intermediate_size": 128, "vocab_size": 100}
    model = skeleton(families.resolve({**SHAPES["qwen3-moe-1.3b"], **sizes})[0], torch.bfloat16)
    of_one_expert = 3 * 128 * 128
    others = {n: p for n, p in model.named_parameters() if ".experts." not in n}
    rest = sum(p.numel() * (4 if "router" in n else 2) for n, p in others.items())
    if held:
        quantised.hold(model, [n for n in dict(model.named_parameters()) if ".experts." in n])
    each = of_one_expert + 4 * 3 * 128 if held else 2 * of_one_expert  # a factor for each row of each block
    assert bytes_per_step(model) == rest + 2 * 8 * each


def test_measures() -> None:
    cpu = torch.device("cpu")
    assert 1e8 < copy_bandwidth(cpu) < 1e13
    assert 5e7 < peak_memory(cpu) < 1e12


@pytest.mark.parametrize(
    "arguments", [["--weights", "x", "--random", "qwen3-0.6b"], ["--rounds", "0"], ["--random", "gpt-5"]]
)
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bench.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_kernels_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every op of the seam, and those beside it; each name that is said to have a kernel has one."""
    assert bench.main(["kernels", "--list", "--json"]) == 0
    listed = {each["op"]: each for each in json.loads(capsys.readouterr().out)["ops"]}
    seam = {field.name for field in dataclasses.fields(ops.Ops)}
    assert {name for name, each in listed.items() if each["in_model"]} == seam
    kernels = ops.select("triton", torch.device("cpu"), torch.float32)
    for name in seam:
        assert listed[name]["triton"] == (getattr(kernels, name) is not getattr(ops.REFERENCE, name))
    assert all(each["triton"] for each in listed.values())
    assert bench.main(["kernels", "--list"]) == 0
    assert capsys.readouterr().out.count("Triton") == len(listed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_kernels_are_not_timed_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["kernels"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "there is none here" in err


def test_what_is_timed_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case through the reference, on meta tensors: shapes fit, and each op of the seam has a case."""
    device = torch.device("meta")
    monkeypatch.setattr(torch.Tensor, "unique", lambda self: torch.zeros(0, dtype=torch.int64))
    found = bench_kernels.cases(device, torch.bfloat16)
    assert {case.op for case in found} == {field.name for field in dataclasses.fields(ops.Ops)}
    for case in found:
        assert getattr(ops.REFERENCE, case.op)(*case.arguments).numel() > 0
        assert case.nbytes > 0
