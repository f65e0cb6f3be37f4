"""Ranks as processes that talk over gloo: the same tokens as one process, and one line and an end for all where one of
them fails."""

from __future__ import annotations

import json
import os
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
from tests.parallel.forks import Forks
from tests.parallel.worker import CASES, answers

LONG = ["--prompt", "Once upon a time", "--max-new-tokens", "20", "--ignore-eos"]
LONG += ["--temperature", "0", "--dtype", "float32"]


@pytest.fixture(scope="module")
def expected() -> dict[str, list[list[int]]]:
    llm = load(DEMO, dtype="float32", device="cpu")
    found = {name: answers(llm, how) for name, (how, _) in CASES.items()}
    return {**found, "draft": found["greedy"]}


@pytest.mark.parametrize("count", [2, 4])
def test_processes_are_one(count: int, tmp_path: Path, expected: dict[str, Any], forks: Forks) -> None:
    """With compiled loops whose steps are recorded, in batches, with seeds, with guesses; and what is not the same in
    all is refused by all."""
    store = {"WORLD_SIZE": str(count), launch.STORE: str(tmp_path / "store"), "GLOO_SOCKET_IFNAME": "lo"}
    made = [
        forks.start("tests.parallel.worker", str(count), str(tmp_path), RANK=str(rank), **store)
        for rank in range(count)
    ]
    assert [each.ended() for each in made] == [(0, "", "")] * count
    found = json.loads((tmp_path / "found.json").read_text())
    assert "rank 1" in found.pop("unlike")
    assert found.pop("working") == (sys.platform == "linux")  # threads, none of which is left at the end
    assert found.pop("threads") == []
    assert found == expected


def test_the_command_writes_what_one_process_writes(forks: Forks) -> None:
    """The ranks are started as users start them: nothing is forked."""
    line = [sys.executable, "-m", "minillm.generate", *LONG, "--ranks", "2"]
    made = subprocess.run(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300)
    code, alone, _ = forks.start("minillm.generate", *LONG).ended()
    assert (code, made.returncode) == (0, 0), made.stderr
    assert made.stdout.decode() == alone


def test_stages_find_each_other(forks: Forks) -> None:
    """They take layers by their memory, each in two ranks too, and end together; the prompt is in two pieces."""
    flags = ([], ["--stages", "2"], ["--layers", "1,2,1"], ["--stages", "2", "--ranks", "2"])
    line = [*LONG, "--prompt", "Once upon a time, there was a dog. " * 30]
    alone, *splits = (forks.start("minillm.generate", *line, *more) for more in flags)
    expected = alone.ended()[1]
    for split in splits:
        code, text, said = split.ended()
        assert (code, text) == (0, expected), said


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "3"}, "is 2, and WORLD_SIZE in the environment is 3; start as many"),
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
