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
from minillm.guard import memory
from minillm.hub import DEMO
from minillm.tune import job, state
from minillm.tune.__main__ import main
from tests.conftest import ROOT, exit_code, shared

ADAPTER = "adapter_model.safetensors"
STEPS = ["--steps", "6", "--batch", "4", "--micro-batch", "2", "--rate", "5e-3", "--every", "2"]
QUICK = [*STEPS, "--rank", "4"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def talk(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def written(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    said = [talk(f"What is {n} and {n}?", f"It is {n + n}, said the owl. " * (1 + n % 3)) for n in range(10)]
    return written(tmp_path / "train.jsonl", [{"messages": each} for each in said])


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    asked = [[{"role": "user", "content": f"Say {n}"}] for n in range(6)]
    lines = [{"prompt": p, "chosen": talk("", f"It is {n}.")[1:], "rejected": talk("", f"No {n}!")[1:]}
             for n, p in enumerate(asked)]  # fmt: skip
    return written(tmp_path / "pairs.jsonl", lines)


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


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


def test_a_run_that_was_stopped_goes_on(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert main([*command, "--output", str(output)]) == 0
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


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    monkeypatch.setattr(job, "load", lambda *given, **named: pytest.fail("loaded"))
    assert main(["--data", data, "--output", str(tmp_path / "out")]) == 2
    assert "training takes 0.0 GB and 0.0 GB are left; give a smaller --micro-batch" in capsys.readouterr().err


def test_a_place_that_holds_something_else_is_refused(data: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--data", data, "--output", str(tmp_path), *QUICK]) == 2
    assert "is there and holds something else" in capsys.readouterr().err
    assert main(["--data", data, "--output", data, *QUICK]) == 2
    assert "is there and is no folder" in capsys.readouterr().err
    assert main(["--data", data, "--output", str(tmp_path / "out"), *QUICK]) == 0
    assert main(["--data", data, "--output", str(tmp_path / "out"), *QUICK, "--seed", "5"]) == 2
    assert "had seed 0, this one has 5; ask for the same, or take another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rank", "0"], "--rank is 0, it must be at least 1"),
        (["--epochs", "0"], "--epochs is 0.0, it must be more than 0"),
        (["--warmup", "1"], "--warmup is 1.0, it must be at least 0 and less than 1"),
        (["--rate", "0"], "--rate is 0.0, it must be more than 0"),
        (["--decay", "-1"], "--decay is -1.0, it must be at least 0"),
        (["--full", "--quantize", "int4"], "--quantize is of an adapter, and --full trains none"),
        (["--full", "--rank", "8"], "--rank is of an adapter, and --full trains none"),
        (["--bf16-weights"], "--bf16-weights is about weights that learn"),
        (["--preference", "dpo"], "lines of the format 'messages'; give lines of chosen and rejected"),
        (["--preference", "dpo", "--pack"], "--preference goes with none of --teacher, --pack and --dropout"),
        (["--adapter", "x"], "--adapter x: a new one is trained"),
        (["--patience", "2"], "--patience looks at what is held out"),
        (["--max-length", "513"], "--max-length is 513, this model takes from 2 to 512"),
        (["--max-length", "5"], "no example is left to learn from (10 are longer than 5 tokens)"),
        (["--evaluation-share", "0.1", "--evaluation", "x.jsonl"], "--evaluation and --evaluation-share: give one"),
        (["--targets", "nothing"], "no module is one of target_modules"),
        (["--device", "cuda:77"], "cuda:77"),
    ],
)
def test_what_cannot_be_is_one_line(
    data: str, tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    assert exit_code(main, ["--data", data, "--output", str(tmp_path / "out"), *options]) == 2
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_pairs_need_to_be_asked_for(pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--data", pairs, "--output", str(tmp_path / "out")]) == 2
    assert "lines of the format 'preference'; give --preference dpo or ipo" in capsys.readouterr().err
    assert exit_code(main, ["--data", pairs]) == 2
    assert "--output is missing" in capsys.readouterr().err


def test_a_quantised_checkpoint_is_not_trained_whole(data: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from minillm.quantize import main as quantize

    folder = tmp_path / "int4"
    assert quantize(["--quantize", "int4", "--output", str(folder)]) == 0
    assert main(["--weights", str(folder), "--full", "--data", data, "--output", str(tmp_path / "out"), *STEPS]) == 2
    assert "--full: matrices of this checkpoint are quantised" in capsys.readouterr().err
    assert main(["--weights", str(folder), "--data", data, "--output", str(tmp_path / "out"), *QUICK]) == 0


@pytest.mark.parametrize("flag", ["--data", "--evaluation"])
def test_a_file_that_is_not_there(flag: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = {"--data": data, "--output": str(tmp_path / "out"), flag: str(tmp_path / "none")}
    assert exit_code(main, [each for pair in given.items() for each in pair]) == 2
    assert f"{flag} {tmp_path / 'none'}: no such file" in capsys.readouterr().err
