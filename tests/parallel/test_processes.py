"""Ranks as processes that talk over gloo: the same tokens as one process, and one line and an end for all where one of
them fails."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minillm.hub import DEMO
from minillm.loading import load
from minillm.parallel import launch
from minillm.parallel.ranks import LOST
from tests.conftest import ROOT
from tests.parallel.worker import CASES, answers

LONG = ["--prompt", "Once upon a time", "--max-new-tokens", "20", "--ignore-eos"]
LONG += ["--temperature", "0", "--dtype", "float32"]
ALIVE = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def expected() -> dict[str, list[list[int]]]:
    llm = load(DEMO, dtype="float32", device="cpu")
    found = {name: answers(llm, how) for name, (how, _) in CASES.items()}
    return {**found, "draft": found["greedy"]}


@pytest.mark.parametrize("count", [2, 4])
def test_processes_are_one(count: int, tmp_path: Path, expected: dict[str, Any]) -> None:
    """With compiled loops whose steps are recorded, in batches, with seeds, with guesses; and what is not the same in
    all is refused by all."""
    made = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.worker", str(count), str(tmp_path)],
            cwd=ROOT,
            env={
                **os.environ,
                **ALIVE,
                "RANK": str(rank),
                "WORLD_SIZE": str(count),
                launch.STORE: str(tmp_path / "store"),
            },
        )
        for rank in range(count)
    ]
    assert [each.wait(600) for each in made] == [0] * count
    found = json.loads((tmp_path / "found.json").read_text())
    assert "rank 1" in found.pop("unlike")
    assert found.pop("working") == (sys.platform == "linux")  # threads, none of which is left at the end
    assert found.pop("threads") == []
    assert found == expected


def generate(*options: str, **environment: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "minillm.generate", *LONG, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env={**os.environ, **ALIVE, **environment}, **pipes)  # type: ignore[call-overload]


def test_the_command_writes_what_one_process_writes() -> None:
    alone, split = generate(), generate("--ranks", "2")
    texts = [each.communicate(timeout=300) for each in (alone, split)]
    assert [alone.returncode, split.returncode] == [0, 0], texts
    assert texts[0][0] == texts[1][0]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "3"}, "--ranks is 2, and WORLD_SIZE in the environment is 3; start as many"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "expected a number below a number"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "MASTER_ADDR and MASTER_PORT must be set"),
    ],
)
def test_an_environment_that_does_not_fit(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        launch.place(2)


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = generate("--ranks", "2", RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "found no way to the others" in said
    assert said.count("\n") == 1


WAIT = "import time; time.sleep(60)"
FAIL = "import sys; print('minillm: error: no shard', file=sys.stderr); sys.exit(2)"
GONE = f"import sys; sys.exit({LOST})"
KILLED = "\nimport os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def ranks_of(*scripts: str, folder: Path) -> tuple[list[subprocess.Popen[bytes]], list[Path]]:
    said = [folder / str(number) for number in range(len(scripts))]
    made = [
        subprocess.Popen([sys.executable, "-c", script], stderr=path.open("wb"))
        for script, path in zip(scripts, said, strict=True)
    ]
    return made, said


@pytest.mark.parametrize(
    ("scripts", "code", "words"),
    [
        ([WAIT, FAIL], 2, "rank 1 of 2: no shard; all others end too"),
        ([WAIT, "", "import sys; sys.exit('odd')"], 2, "rank 2 of 3: ended with exit code 1: odd; all others end too"),
        ([GONE, WAIT.replace("60", "0.5") + KILLED, GONE], 2, "rank 1 of 3: ended by SIGKILL"),
        ([WAIT, KILLED], 2, "rank 1 of 2: ended by SIGKILL"),
        ([GONE, ""], 2, "rank 0 of 2: another one has ended"),
        ([KILLED, WAIT], 2, "rank 0 of 2: ended by SIGKILL"),
        ([KILLED.replace("SIGKILL", "SIGTERM"), WAIT], 143, ""),
        (["import sys; sys.exit(5)", WAIT], 5, ""),
        ([FAIL, FAIL], 2, ""),
        (["", ""], 0, ""),
    ],
)
def test_the_first_that_fails_is_heard(
    scripts: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if scripts[0] == WAIT:
        monkeypatch.setattr(launch, "LEAVE", 0.5)  # it never does
    made, said = ranks_of(*scripts, folder=tmp_path)
    try:
        assert launch._watched(made, said) == code
    finally:
        launch._end(made)
    found = capsys.readouterr().err
    assert words in found
    assert found.count("\n") == bool(words)
    assert all(each.returncode is not None for each in made)


def test_what_all_ranks_refuse_is_one_line() -> None:
    """The first says it, and then has nobody left to let go."""
    process = generate("--ranks", "3")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "3 ranks cannot share this model" in said
    assert said.count("\n") == 1
