"""What the command refuses: one line, exit code 2, and nothing is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm.guard import memory
from minillm.tune import job
from minillm.tune.__main__ import main
from tests.conftest import exit_code
from tests.tune.conftest import QUICK, STEPS, talk, written


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    monkeypatch.setattr(job, "load", lambda *given, **named: pytest.fail("loaded"))
    assert main(["--data", data, "--output", str(tmp_path / "out")]) == 2
    assert "training takes 0.0 GB and 0.0 GB are left; give a smaller --micro-batch" in capsys.readouterr().err


def test_what_is_wrong_in_an_example_is_said_with_its_file(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other, command = str(tmp_path / "other.jsonl"), ["--output", str(tmp_path / "out"), "--max-length", "100"]
    odd = [{"role": "wizard", "content": "a"}, *talk("a", "b")]
    for given in (["--data", data, "--evaluation"], ["--data"]):
        written(tmp_path / "other.jsonl", [{"messages": talk("a", "b")}, {"messages": odd}])
        assert main([*command, *given, other]) == 2
        assert f"{other}, line 2: the chat template refuses these messages" in capsys.readouterr().err
    written(tmp_path / "other.jsonl", [{"messages": talk("a", "b" * 600)}])
    assert main([*command, "--data", data, "--evaluation", other]) == 2
    assert "no example is left to judge by" in capsys.readouterr().err


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
        (["--evaluation-share", "0.01"], "--evaluation-share 0.01 of 10 lines is 0, which leaves nothing on one side"),
        (["--evaluation-share", "0.99"], "--evaluation-share 0.99 of 10 lines is 10, which leaves nothing on one side"),
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


def test_pairs_need_to_be_asked_for(data: str, pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--data", pairs, "--output", str(tmp_path / "out")]) == 2
    assert "lines of the format 'preference'; give --preference dpo or ipo" in capsys.readouterr().err
    mixed = ["--data", data, "--evaluation", pairs], ["--data", pairs, "--preference", "dpo", "--evaluation", data]
    for others in mixed:
        assert main([*others, "--output", str(tmp_path / "out")]) == 2
        assert f"{others[-1]}: lines of the format" in capsys.readouterr().err
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
