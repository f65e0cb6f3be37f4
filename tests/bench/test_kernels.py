"""`bench kernels`: every op is listed and timed, and what it says of bytes and operations is so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minillm import ops
from minillm.bench import __main__ as bench
from minillm.bench import kernels as bench_kernels
from minillm.bench.cases import Cases, Sizes
from minillm.report import roofline
from tests.helpers.kernel_cases import ulps


def test_kernels_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every op of the seam, and those beside it; each name that is said to have a kernel has one."""
    assert bench.main(["kernels", "--list", "--json"]) == 0
    listed = {each["op"]: each for each in json.loads(capsys.readouterr().out)["ops"]}
    seam = {field.name for field in dataclasses.fields(ops.Ops)} - {"tile", "ranks"} - set(bench_kernels.WITHOUT)
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
    parts = 40 * (128 // 2 + 2 * (128 // 32 + 2))  # numbers; scales and minima: a byte each, and a factor in fp16
    assert found["grouped_linear", "1 x 128 -> 40, 4 bits of 32"] == (parts + 4 * (128 + 40), 2 * 128 * 40)
    parts = 40 * (128 // 2 + 128 // 16 + 4)  # a byte for a group of 16, and fp32 for a row
    assert found["grouped_linear", "1 x 128 -> 40, int4"] == (parts + 4 * (128 + 40), 2 * 128 * 40)
    assert found["grouped_linear", "1 x 128 -> 40, int8"] == (40 * (128 + 4) + 4 * (128 + 40), 2 * 128 * 40)


def test_the_table_and_the_picture(rows: list[dict], tmp_path: Path) -> None:
    lines = bench_kernels.table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {11}
    assert lines[2].startswith("| rms_norm | 6 x 128 | 1.0 | 0.0 | 0.00 | ")
    roofline.draw(tmp_path / "roof.png", rows, 4e12, 8e14, "a GPU")
    assert [path.name for path in tmp_path.iterdir()] == ["roof.png"]
    assert (tmp_path / "roof.png").read_bytes()[:4] == b"\x89PNG"
