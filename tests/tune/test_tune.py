"""The command: what it prints before it loads anything, what it writes, and how a run that was cut off goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import minillm
from minillm.adapters.read import read as read_adapter
from minillm.hub import DEMO
from minillm.tune import job, state
from minillm.tune.__main__ import main
from tests.conftest import ROOT, shared
from tests.tune.conftest import ADAPTER, QUICK, STEPS, losses, written

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_an_adapter_is_trained_and_written(data: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "out"
    assert main(["--data", data, "--output", str(output), *QUICK, "--evaluation-share", "0.2"]) == 0
    said = capsys.readouterr()
    parts = ["messages, 8 rows, 2 held out", "10 a stop token put behind", "6 of 4 rows, 2 at a time (3.00 epochs)"]
    parts += ["memory: weights 1.8 MB", "⟦It is", "training an adapter of 38,912 values", "step 6/6: loss", "(best)"]
    for part in parts:
        assert part in said.err
    assert f"{output}: an adapter of 38,912 values, behind 6 steps; try it with --adapter {output}" in said.out
    assert "is now answered" in said.out
    names = {"adapter_config.json", ADAPTER, state.LAST, state.BEST, "log.jsonl", "report.html", "loss.png"}
    assert {each.name for each in output.iterdir()} == names
    kept = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [each["step"] for each in kept] == [1, 2, 3, 4, 5, 6]
    assert ["evaluated" in each for each in kept] == [False, True] * 3
    assert kept[-1]["loss"] < kept[0]["loss"]
    page = (output / "report.html").read_text()
    assert page.count("<polyline") == 3
    assert "⟦It is" in page
    llm = minillm.load(dtype="float32", device="cpu", kernels="reference")
    before = llm.model(torch.tensor([[5, 6, 7]]))
    read_adapter(llm, output).on()
    assert not torch.equal(llm.model(torch.tensor([[5, 6, 7]])), before)


def test_tensorboard_has_the_log(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that was cut off once too: steps that are taken again stand there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = ["--data", data, *QUICK, "--tensorboard", "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(job, "_say", lambda taken, *_: os.kill(os.getpid(), signal.SIGINT) if taken.step == 3 else None)
        assert main(command) == 130
    assert main(command) == 0
    found = EventAccumulator(str(tmp_path / "out")).Reload()
    kept = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    for name in ("loss", "rate", "norm"):
        events = found.Scalars(name)
        assert [each.step for each in events] == [1, 2, 3, 4, 5, 6]
        assert [each.value for each in events] == pytest.approx([each[name] for each in kept], rel=1e-4)


def test_tensorboard_that_is_not_there_is_said(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["--data", data, "--output", str(tmp_path / "out"), "--tensorboard"]) == 2
    assert "--tensorboard needs tensorboard: pip install -e '.[tensorboard]' in the clone" in capsys.readouterr().err


def test_all_of_a_model_is_trained_and_loads(data: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main(["--full", "--data", data, "--output", str(output), *STEPS, "--pack", "--optimizer", "muon"]) == 0
    found = minillm.load(output, dtype="float32", device="cpu", kernels="reference")
    kept = load_file(output / state.LAST)
    for name, each in found.model.named_parameters():
        assert torch.equal(each, kept[name].bfloat16().float()), name  # in the type that the demo is stored in
    assert json.loads((output / "config.json").read_text()) == json.loads((DEMO / "config.json").read_text())
    assert losses(output)[-1] < losses(output)[0]


OPTIONS = [
    ["--quantize", "int4"],
    ["--recompute"],
    ["--optimizer", "adamw8bit"],
    ["--dropout", "0.1", "--targets", "q_proj,v_proj"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda each: each[0])
def test_options_train_too(data: str, tmp_path: Path, options: list[str]) -> None:
    assert main(["--data", data, "--output", str(tmp_path / "out"), *QUICK, *options]) == 0
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]


def test_preferences(pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--preference", "dpo", "--data", pairs, *QUICK, "--evaluation", pairs]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "step 1/6: dpo 0.6931" in said
    assert "not ln 2" not in said
    assert losses(tmp_path / "out")[-1] < 0.69
    assert main([*command[2:], "--preference", "ipo", "--output", str(tmp_path / "ipo")]) == 0
    assert losses(tmp_path / "ipo")[0] == pytest.approx(25, rel=1e-4)


def test_a_teacher_of_the_same_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small, large = (str(shared(f"checkpoints/{name}")) for name in ("stories260K", "stories-phi3"))
    texts = written(tmp_path / "texts.jsonl", [{"text": "Once upon a time there was a little girl. " * 3}] * 4)
    command = ["--weights", small, "--teacher", large, "--data", texts, "--output", str(tmp_path / "out"), *QUICK]
    assert main(command) == 0
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]
    other = ["--data", texts, "--teacher", large, "--output", str(tmp_path / "other"), *QUICK]
    assert main(other) == 2
    assert "another vocabulary (of 512 tokens, this model's has 768)" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["--data", data, *QUICK, "--dropout", "0.2", "--evaluation-share", "0.2"]
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    said, output = job._say, tmp_path / "cut"

    def stop_at_3(taken: Any, *rest: Any) -> None:
        said(taken, *rest)
        if taken.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_say", stop_at_3)
        assert main([*command, "--output", str(output)]) == 130
    assert not (output / ADAPTER).exists()
    capsys.readouterr()
    assert main([*command, "--output", str(output)]) == 0
    err = capsys.readouterr().err
    assert 0 < err.index("going on behind step 3 of 6") < err.index("step 4/6")
    assert losses(output) == losses(tmp_path / "whole")
    assert (output / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


def test_a_run_that_is_killed_while_it_saves_goes_on(data: str, tmp_path: Path) -> None:
    """By SIGKILL, in the middle of the third save."""
    command = ["--data", data, *QUICK]
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    script = f"""
import os, signal
from minillm.tune import state
from minillm.tune.__main__ import main
from minillm.weights.tensorfile import Writer
write, saves = Writer.write, []
def killing(self, name, *rest):
    saves.append(name == state.ABOUT)
    if sum(saves) == 2 and not saves[-1]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, name, *rest)
Writer.write = killing
main({[*command, "--output", str(tmp_path / "cut")]!r})
"""
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    output = tmp_path / "cut"
    assert any(each.suffix == ".part" for each in output.iterdir())
    assert main([*command, "--output", str(output)]) == 0
    assert losses(output) == losses(tmp_path / "whole")
    assert (output / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


def test_examples_are_shown_and_nothing_is_trained(data: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--data", data, "--show", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("⟦It is") == 2
    assert not (tmp_path / "out").exists()
