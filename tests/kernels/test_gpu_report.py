"""`make gpu-report` without a GPU: rehearsed in Triton's interpreter at tiny shapes, where packages lack, where an op
is wrong, where a process dies or hangs, and where time is short."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import einops
import pytest
import torch
from safetensors.torch import save_file

from minillm.families import resolve
from minillm.families.shared.shapes import SHAPES
from minillm.model.decoder import skeleton
from tests.conftest import ROOT, exit_code
from tests.gpu_report import decode, lacking, models, ops, prefill, stories, worker
from tests.gpu_report.__main__ import main
from tests.gpu_report.children import Children
from tests.gpu_report.results import Results
from tests.gpu_report.steps import STEPS, Step, chosen
from tests.gpu_report.worker import Run
from tests.helpers import tiny

Rows = dict[str, dict[str, Any]]
BARE = (
    "einops",
    "tqdm",
    "pytest",
    "hypothesis",
    "transformers",
    "safetensors",
    "tokenizers",
    "jinja2",
    "numba",
    "yaml",
)


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A rehearsal in this process: `lines` is what it sends."""
    lines = list[dict[str, Any]]()
    made = Run(lines.append, monkeypatch, rehearse=True)
    made.lines = lines  # type: ignore[attr-defined]
    return made


def served(run: Run, items: list[worker.Item], only: list[str]) -> Rows:
    """The rows by their items."""
    assert worker.serve(run, items, only, []) == 0
    return {line["row"]["item"]: line["row"] for line in run.lines if "row" in line}  # type: ignore[attr-defined]


def test_a_rehearsal_on_a_bare_machine(tmp_path: Path) -> None:
    """Processes, files and real steps, where there is nothing but torch, triton and numpy."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({BARE!r}))\n")
    environment, out = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}, tmp_path / "out"
    only = ["ops/rope, fp32, awkward", "decode/qwen3-0.6b, 1 behind", "kernels/gated_act, 6 x 40", "tests/recorded"]
    command = [sys.executable, "-m", "tests.gpu_report", "--rehearse", "--out", str(out), "--only", *only]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {(row["step"], row["item"]): row for row in written(out)}
    assert {step for step, _ in rows} == {"machine", "ops", "decode", "kernels", "tests"}
    assert rows["ops", "rope, fp32, awkward"]["ok"] is True
    step = rows["decode", "qwen3-0.6b, 1 behind 512"]["values"]
    assert step["graph"] is True
    assert step["of copy"] == pytest.approx(
        step["GB/s"] / rows["machine", "copy, GB/s read and written"]["values"]["value"]
    )
    assert rows["kernels", "gated_act, 6 x 40"]["values"]["us"] > 0
    assert rows["tests", "recorded steps"]["message"] == "not run: no pytest, hypothesis, safetensors here"
    report = (out / "report.md").read_text()
    assert "(a rehearsal on the CPU)" in report
    assert all(f"| {item} |" in report for _, item in rows)
    for line in ("ops: 1 right;", "decode: 1 measured;", "tests: 1 not run;"):
        assert line in done.stdout
        assert line in report
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "report.md", "results.jsonl"]


def test_trained_checkpoints(saved: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was recorded right, and one whose logits and ids are others."""
    monkeypatch.setattr(stories, "PIECES", (5, 3))
    monkeypatch.setattr(stories, "FEW", 3)
    theirs = tiny.reference(saved)
    ids, prompt = tiny.tokens(theirs.config.vocab_size, 12), tiny.tokens(theirs.config.vocab_size, 5, seed=1)
    greedy = prompt
    for _ in range(stories.FEW):
        greedy = torch.cat((greedy, tiny.logits(theirs, greedy[None])[0, -1:].argmax(-1)))
    for name, off in (("right", 0), ("wrong", 1)):
        folder = tmp_path / name
        (folder / "expected").mkdir(parents=True)
        for file in saved.iterdir():
            (folder / file.name).symlink_to(file)
        recorded = {"input_ids": ids, "logits": tiny.logits(theirs, ids[None])[0] + off * 1e-3}
        save_file(recorded, folder / "expected/outputs.safetensors")
        values = {"prompt_ids": prompt.tolist(), "greedy_new_ids": (greedy[5:] + off).tolist()}
        (folder / "expected/outputs.json").write_text(json.dumps(values))
    run.checkpoints = [str(tmp_path / "right"), str(tmp_path / "wrong")]
    rows = served(run, stories.items(run), ["right", "wrong, logits", "wrong, greedy"])
    assert {item: row["ok"] for item, row in rows.items()} == {
        "right, logits": True, "right, greedy": True, "right, half": True,
        "wrong, logits": False, "wrong, greedy": False,
    }  # fmt: skip
    assert rows["right, greedy"]["values"] == {"ids as they should be": "3 of 3", "graph": True}
    assert rows["wrong, logits"]["values"]["at once"] == pytest.approx(1e-3, rel=0.1)


def test_without_recorded_outputs(run: Run) -> None:
    rows = served(run, stories.items(run), ["recorded outputs"])
    assert "not run: no checkpoints with recorded outputs" in rows["recorded outputs"]["message"]


def test_prompts_and_many_sequences(run: Run) -> None:
    rows = served(run, [*prefill.items(run), *decode.items(run)], ["in pieces", "throughput"])
    ((_, prompt), (_, many)) = rows.items()
    assert prompt["values"]["tok/s"] > 0
    assert many["values"]["new tokens"] == many["values"]["of"] > 0
    assert many["message"] == ""


def test_a_broken_op_is_a_row_and_the_rest_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: object, kernels: object) -> Any:
        raise RuntimeError("\n".join(["at 12:5:", *"abcdefgh", "unsupported"]))

    problems = {
        "linear": fails,
        "rms_norm": lambda case, kernels: {"result": math.nan},
        "rope": lambda case, kernels: {"result": 0.0, "gradient 0": 3.0},
        "add": ops.PROBLEMS["add"],
    }
    monkeypatch.setattr(ops, "PROBLEMS", problems)
    monkeypatch.setattr(ops, "BESIDE", {})
    rows = served(run, ops.items(run), ["fp32, awkward"])
    found = {item.split(",")[0]: row for item, row in rows.items()}
    assert [op for op, row in found.items() if row["ok"]] == ["add"]
    assert list(found) == list(problems)
    assert found["linear"]["message"].startswith("seed 0: RuntimeError: at 12:5:\na\nb\nc\n…\nf\ng\nh\nunsupported")
    assert [op for op, row in found.items() if row["raised"]] == ["linear"]
    assert found["rope"]["message"] == "gradient 0, seed 0: 2 of its budget\n"


def test_what_raises_is_a_row(run: Run) -> None:
    def fails() -> None:
        raise RuntimeError("no such instruction")

    rows = served(run, [("a", fails), ("b", run.row)], [])
    assert [(row["ok"], row["message"]) for row in rows.values()] == [
        (False, "RuntimeError: no such instruction"),
        (None, ""),
    ]


def test_processes_share_what_is_to_be_measured(run: Run) -> None:
    items = [(name, partial(run.row, {"nan": math.nan})) for name in "abcde"]
    assert worker.serve(run, items, list("abce"), ["c"], part=0, parts=2) == 0
    rows = [line["row"] for line in run.lines if "row" in line]  # type: ignore[attr-defined]
    assert [(row["item"], row["values"]) for row in rows] == [("a", {"nan": "nan"})]


def test_a_model_does_without_kernels_that_have_raised(run: Run) -> None:
    def call(without: list[str]) -> None:
        if not without:
            raise RuntimeError("rope does not compile")
        assert models.ops_of(run, torch.float32, without).rope is models.REFERENCE.rope
        run.row({"tok/s": 1.0})

    run.broken = ["rope", "ragged"]  # the last is none of a model's
    rows = served(run, [("a model", partial(models.with_kernels, run, call))], [])
    assert {item: row["ok"] for item, row in rows.items()} == {
        "a model": False,
        "a model, without the kernels of rope": None,
    }


# A process that dies at b, hangs at c, and is right at a and d; its first start says nothing at all.
WORKER = """
import json, os, sys, time
given = json.loads(sys.argv[-1])
def send(**line): print(json.dumps(line), flush=True)
send(items=list("abcd"))
for name in "abcd":
    if name in given["skip"]:
        continue
    send(begin=name)
    if name == "b":
        os.abort()
    if name == "c":
        time.sleep(60)
    send(row={"item": name, "ok": True, "values": {}, "message": ""})
    send(end=name)
"""


def children(tmp_path: Path) -> Children:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return Children(Results(tmp_path / "out", "a title"), {}, tmp_path, [sys.executable, str(script)])


def test_what_dies_or_hangs_does_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, step = children(tmp_path), Step("ops", "every op", 1, 2.0)
    assert given.run(step, {"run": {}}, 100, 1) is None
    rows = {row["item"]: row for row in written(given.results.folder)}
    assert {item: row["ok"] for item, row in rows.items()} == {"a": True, "b": False, "c": False, "d": True}
    assert "SIGABRT" in rows["b"]["message"]
    assert rows["c"]["message"] == "hung: no end after 2 s"
    given.results.summarise(step, 1.0, None)
    assert "ops: 2 right, 2 wrong; 1 s" in capsys.readouterr().out
    assert not given.running


def test_what_time_cuts_is_named(tmp_path: Path) -> None:
    given = children(tmp_path)
    assert given.run(Step("ops", "every op", 1, 60.0), {"run": {}}, 6, 1) == "cut after 6 s, 2 not run"
    assert written(given.results.folder)[-1]["message"] == "cut after 6 s, 2 not run: c, d"


def test_a_run_without_time_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rehearse", "--minutes", "0.005", "--only", "ops", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert [line.partition(";")[0] for line in out.splitlines() if "not run" in line] == [
        "machine: nothing",
        "ops: nothing",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "opps"], "'opps' is no step; use machine, ops"),
        (["--minutes", "0"], "--minutes 0 must be more than 0"),
        (["--out", "{full}"], "has the results of another run"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Results(tmp_path, "a title").add({"step": "ops", "item": "a", "ok": True, "values": {}, "message": ""})
    given = [each.format(full=tmp_path) for each in arguments]
    assert exit_code(main, ["--out", str(tmp_path / "out"), *given]) == 2
    err = capsys.readouterr().err
    assert (message in err, err.count("\n")) == (True, 1)


def test_steps_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [step.name for step in STEPS]
    assert chosen(["decode/llama", "ops", "decode/qwen"]) == {"machine": [], "ops": [], "decode": ["llama", "qwen"]}


@pytest.mark.parametrize(
    ("pattern", "shape", "sizes"),
    [
        ("B T (H D) -> B H T D", (2, 3, 20), {"H": 4}),
        ("B (K G) 1 D -> B K G D", (2, 6, 1, 5), {"K": 2}),
        ("B K G V -> B (K G) 1 V", (2, 3, 4, 5), {}),
        ("(two H D) E -> (H two D) E", (24, 3), {"two": 2, "H": 3}),
    ],
)
def test_the_stand_in_for_einops(pattern: str, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    x = torch.randn(shape)
    assert torch.equal(lacking.rearrange(x, pattern, **sizes), einops.rearrange(x, pattern, **sizes))


def test_layers_that_fit() -> None:
    """The whole mixture on the largest GPU of today, and as much of it as another has room for."""
    model = skeleton(resolve(SHAPES["mixtral-8x7b"])[0], torch.bfloat16)
    assert models.layers_that_fit(model, 0.85 * 139 * 2**30) == 32

    def nbytes(layers: int) -> int:
        spec = resolve({**SHAPES["mixtral-8x7b"], "num_hidden_layers": layers})[0]
        return sum(each.nbytes for each in skeleton(spec, torch.bfloat16).parameters())

    assert models.layers_that_fit(model, nbytes(20)) == 20
    assert models.layers_that_fit(model, nbytes(20) - 1) == 19
