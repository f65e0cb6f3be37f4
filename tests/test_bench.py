"""The bench: it measures what it says and its last line is JSON. No test looks at how fast anything was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from kernel_cases import ulps

from minillm import bench, bench_kernels, families, ops, quantised, roofline
from minillm.bench_cases import Cases, Sizes
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
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v2-lite": 15_706_484_224,
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
    seam = {field.name for field in dataclasses.fields(ops.Ops)} - {"linear"}
    assert {name for name, each in listed.items() if each["in_ops"]} == seam == set(bench_kernels.FILES)
    kernels = ops.select("triton", torch.device("cpu"), torch.float32)
    for name in seam:
        assert listed[name]["triton"] == (getattr(kernels, name) is not getattr(ops.REFERENCE, name))
    assert all(each["triton"] for each in listed.values())
    assert bench.main(["kernels", "--list"]) == 0
    assert capsys.readouterr().out.count("Triton") == len(listed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is none here"),
        (["--plot", "nowhere/roof.png"], "there is no folder nowhere"),
        (["--plot", "roof.pdf"], "a picture is a .png file"),
    ],
)
def test_kernels_are_not_timed_in_vain(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["kernels", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


ULPS = 6  # between two versions in fp32; the largest seen over 10 seeds was 3.4
TINY = Sizes(
    tokens=6, past=32, batch=2, hidden=128, inner=40, heads=4, kv_heads=2, head_dim=8, latent_heads=(3,), rank=12,
    rotary=4, experts=5, top_k=2, expert_hidden=16, expert_inner=8, expert_tokens=(1, 40), vocabulary=50, rows=(1, 3),
    prefill=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """The whole table at tiny sizes on a CPU, in Triton's interpreter, by a clock that shows one microsecond."""
    torch.manual_seed(0)
    made, kernels, results = [], ops.select("triton", torch.device("cpu"), torch.float32), list[tuple]()

    def seconds(call: Callable, rounds: int) -> float:
        result = call()
        results.append(result if isinstance(result, tuple) else (result,))
        return 1e-6

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "compile", lambda op: op)
        for case in Cases(torch.device("cpu"), torch.float32, TINY).all():
            results.clear()
            case = dataclasses.replace(case, sdpa=case.sdpa and (lambda: None))  # flash attention is for GPUs
            made.append(bench_kernels.measured(case, kernels, 1e12, 1e15, seconds))
            if case.plain:  # the same arguments mean the same to both
                for found, plain in zip(*results[:2], strict=True):
                    if isinstance(found, torch.Tensor) and found.is_floating_point():
                        assert ulps(found, plain.double()) <= ULPS
                    elif isinstance(found, torch.Tensor):
                        assert torch.equal(found, plain)
    return made


def test_every_op_is_timed(rows: list[dict]) -> None:
    assert {row["op"] for row in rows} == {*bench_kernels.FILES, *bench_kernels.BESIDE}
    for row in rows:
        assert row["copy_share"] == row["bytes"] / 1e6 > 0
        assert row["matrix_share"] == pytest.approx(row["flops"] / 1e9)
        beside = row["op"] in bench_kernels.BESIDE
        assert (row["over_reference"] is None) == (row["over_compiled"] is None) == beside
    assert [row["op"] for row in rows if row["over_sdpa"] is not None] == ["attention", "attention"]


def test_bytes_and_operations_by_hand(rows: list[dict]) -> None:
    found = {(row["op"], row["shape"]): (row["bytes"], row["flops"]) for row in rows}
    assert found["rms_norm", "6 x 128"] == (2 * 6 * 128 * 4, 4 * 6 * 128)
    assert found["attention", "prefill 20"] == (4 * 20 * 8 * (4 + 2 + 2 + 4), 2 * 2 * 4 * 8 * (20 * 21 // 2))
    assert found["attention", "2 x 1 behind 32"] == (4 * 2 * 2 * 32 * 2 * 8, 2 * 4 * 32 * 8 * 2 * 2)
    assert found["experts", "1 x 2 of 5"] == (4 * (2 * 3 * 16 * 8 + 2 * 16), 2 * 2 * 3 * 16 * 8)
    assert found["int4_linear", "1 x 128 -> 40"] == (40 * 64 + 40 * 4 + 4 * (128 + 40), 2 * 128 * 40)


def test_the_table_and_the_picture(rows: list[dict], tmp_path: Path) -> None:
    lines = bench_kernels.table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {11}
    assert lines[2].startswith("| rms_norm | 6 x 128 | 1.0 | 0.0 | 0.00 | ")
    roofline.draw(tmp_path / "roof.png", rows, 4e12, 8e14, "a GPU")
    assert [path.name for path in tmp_path.iterdir()] == ["roof.png"]
    assert (tmp_path / "roof.png").read_bytes()[:4] == b"\x89PNG"
