"""A rank that fails, in whatever way: one line says why, and all end with an exit code."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from minillm import generate
from minillm.hub import DEMO
from minillm.parallel import launch
from minillm.serve import __main__ as serve
from minillm.tune import __main__ as tune
from tests.conftest import exit_code
from tests.parallel.forks import FAULT, Forks

SAYS = ["--prompt", "Once upon a time", "--max-new-tokens", "4", "--ignore-eos", "--kernels", "reference"]
GONE = "ended by SIGKILL, as the system does where memory runs out; all others end too"
RAISED = "a fault of minillm itself: RuntimeError not today"
SILENT = "another rank has not answered for 3 s, so this one ends; start all of them again"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration checkpoint in two shards."""
    made = tmp_path_factory.mktemp("shards")
    for path in DEMO.glob("*.json"):
        shutil.copy(path, made)
    tensors = load_file(DEMO / "model.safetensors")
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: tensors[name] for name in part}, made / f"model-{number:05}-of-00002.safetensors")
    files = {name: f"model-{1 + at % 2:05}-of-00002.safetensors" for at, name in enumerate(names)}
    (made / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return made


def failed(forks: Forks, *argv: str, fault: dict[str, object] | None = None, **environment: str) -> str:
    """The one line of a command that fails."""
    environment |= {FAULT: json.dumps(fault or {})}
    code, _, said = forks.start("minillm.generate", *SAYS, *argv, **environment).ended()
    assert code == 2, said
    assert said.startswith("minillm: error: ")
    assert said.count("\n") == 1, said
    return said.removeprefix("minillm: error: ").rstrip()


@pytest.mark.parametrize("split", ["--ranks", "--stages"])
@pytest.mark.parametrize(
    ("how", "rank", "words"),
    [("raise", 1, RAISED), ("SIGKILL", 1, GONE), ("SIGSTOP", 0, SILENT)],
)
def test_a_rank_that_fails_in_a_pass(split: str, how: str, rank: int, words: str, forks: Forks) -> None:
    waits = ["--rank-timeout", "3"] if how == "SIGSTOP" else []  # which ends nothing else, however slow this machine is
    said = failed(forks, split, "2", *waits, fault={"rank": 1, "obeys": how})
    assert said.startswith(f"rank {rank} of 2: {words}")


@pytest.mark.parametrize("split", ["--ranks", "--stages"])
def test_another_checkpoint(split: str, folder: Path, tmp_path: Path, forks: Forks) -> None:
    """One value of a norm is another: all ranks have those."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    path = other / json.loads((other / "model.safetensors.index.json").read_text())["weight_map"]["model.norm.weight"]
    tensors = load_file(path)
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, path)
    said = failed(forks, split, "2", "--weights", str(folder), fault={"rank": 1, "weights": str(other)})
    assert said.startswith("rank 1 has another checkpoint, data, options or version of minillm than rank 0")


@pytest.mark.parametrize("split", ["--ranks", "--stages"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_shard_that_one_rank_lacks(split: str, rank: int, folder: Path, tmp_path: Path, forks: Forks) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "model-00002-of-00002.safetensors").unlink()
    said = failed(forks, split, "2", "--weights", str(folder), fault={"rank": rank, "weights": str(other)})
    assert "model-00002-of-00002.safetensors" in said
    assert said.startswith("rank 1 of 2: ") == (rank == 1)


@pytest.mark.parametrize("split", ["--ranks", "--stages"])
def test_a_port_in_use(split: str, forks: Forks) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        where = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        assert "found no way to the others" in failed(forks, split, "2", **where)


def test_what_all_ranks_refuse(forks: Forks) -> None:
    """The first says it, and then has nobody left to let go."""
    assert "go with --quantize int4" in failed(forks, "--ranks", "2", "--group-size", "32")


TUNE = ["--data", __file__, "--output", "out", "--split"]


@pytest.mark.parametrize(
    ("command", "given"),
    [(generate.main, ["--prompt", "x"]), (generate.main, ["--chat"]), (serve.main, []), (tune.main, TUNE)],
)
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--ranks", "99"],
            "99 ranks cannot share this model: layer 0 has 4 heads over 2 kv heads; possible numbers: 1",
        ),
        (["--stages", "99"], "--stages is 99, and the model has 4 layers: give at most as many"),
        (["--layers", "20,12"], "--layers is '20,12', expected numbers of layers of each stage, 4 in all"),
        (["--layers", "2,2", "--ranks", "3"], "3 ranks cannot share this model"),
    ],
)
def test_what_cannot_be_split_starts_nothing(
    command: Callable[[list[str]], int],
    given: list[str],
    flags: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its config alone says so."""
    if command is tune.main and flags[0] != "--ranks":
        words = "--stages and --layers split a model that generates; training is over --ranks"
    monkeypatch.setattr(launch, "start", lambda *given: pytest.fail("started"))
    assert exit_code(command, [*given, *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"minillm: error: {words}")
    assert said.count("\n") == 1
