"""Choosing a configuration by time, without a GPU: one is made up."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton

from minillm.kernels import (
    attention,
    attention_backward,
    decode_attention,
    fp8_linear,
    grouped_linear,
    mla_decode,
    moe,
    tuning,
)
from minillm.kernels.tuning import EVERY, SHARED_MEMORY, Config, candidates, run

GPU = torch.device("cuda", 0)
TABLE = (
    Config("first", (1,), 4, 3, ("sm_80", "sm_90")),
    Config("second", (2,), 4, 3, ("sm_90",)),
    Config("third", (3,), 4, 1, ("gfx942", "other")),
)


class Bench:
    """A GPU on which a configuration takes `times[name]` seconds or does not fit; and what was launched and timed."""

    def __init__(self, times: dict[str, float]):
        self.times, self.timed, self.launched = times, list[str](), list[str]()

    def launch(self, config: Config) -> None:
        if config.name not in self.times:
            raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")
        self.launched.append(config.name)

    def seconds(self, call: Callable[[], None]) -> float:
        call()
        self.timed.append(self.launched.pop())
        return self.times[self.timed[-1]]

    def best(self, *key: object) -> str:
        run("op", key, TABLE, GPU, self.launch)
        return self.launched.pop()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    made = Bench({"first": 2.0, "second": 1.0})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "seconds", made.seconds)
    monkeypatch.setattr(tuning, "_gpus", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Made Up 9000")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return made


def test_the_fastest_is_found_once_for_each_key(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert [bench.best(64), bench.best(64), bench.best(64)] == ["second"] * 3
    assert bench.timed == ["first", "second"]
    bench.times["first"] = 0.5
    assert (bench.best(64), bench.best(128)) == ("second", "first")
    assert capsys.readouterr().err.splitlines() == ["minillm: tuned op 64: second", "minillm: tuned op 128: first"]


def test_what_is_too_small_is_not_timed(bench: Bench) -> None:
    """And goes by the first; what is known of the key holds for it too."""
    run("op", (64,), TABLE, GPU, bench.launch, size=9, least=10)
    assert (bench.launched, bench.timed) == (["first"], [])
    bench.launched.clear()
    assert bench.best(64) == "second"
    run("op", (64,), TABLE, GPU, bench.launch, size=9, least=10)
    assert bench.launched[-1] == "second"


def test_processes_keep_what_others_found(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench.best(1)
    mine = tuning._gpus[0]
    monkeypatch.setattr(tuning, "_gpus", {})
    bench.best(2)
    monkeypatch.setattr(tuning, "_gpus", {0: mine})  # the first again, which has read the file before
    bench.best(3)
    (stored,) = json.loads((tmp_path / "minillm/tuning/kernels.json").read_text()).values()
    assert sorted(stored) == ["op 1", "op 2", "op 3"]


def test_a_key_of_another_table_is_another(bench: Bench) -> None:
    """What is settled without a look at the text holds for its own table only."""
    assert bench.best(64) == bench.best(64) == "second"
    run("op", (64,), (Config("only", (1,), 4, 3),), GPU, lambda config: bench.launched.append(config.name))
    assert (bench.launched.pop(), bench.best(64)) == ("only", "second")


def test_lengths_on_the_device_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that only the device knows to be filled may be all but empty; on pages there are as many as are used."""
    sizes, q = list[int](), torch.ones(2, 2, 8)
    for module in (decode_attention, mla_decode):
        monkeypatch.setattr(module, "run", lambda *given: sizes.append(given[5]))
        monkeypatch.setattr(module, "join", lambda *given: None)
    lengths, table = torch.tensor([3, 4]).int(), torch.zeros(2, 1).int()
    for given in ({}, {"lengths": lengths}, {"lengths": lengths, "block_table": table}):
        decode_attention.decode_attention(
            q, *(torch.ones((2, 40, 2, 8) if "block_table" in given else (2, 2, 40, 8)),) * 2, **given
        )
        mla_decode.mla_decode(q, torch.ones(2, 40, 8), 6, **given)
    assert sizes == [40, 40, 0, 0, 40, 40]


def test_forgotten_is_timed_anew(bench: Bench) -> None:
    bench.best(64)
    bench.times["first"] = 0.1
    tuning.forget(GPU)
    assert bench.best(64) == "first"


def test_it_is_remembered_by_gpu_and_release(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bench.best(64) == "second"
    stored = json.loads((tmp_path / "minillm/tuning/kernels.json").read_text())
    assert stored == {f"Made Up 9000, triton {triton.__version__}": {"op 64": "second"}}
    bench.timed.clear()
    monkeypatch.setattr(tuning, "_gpus", {})  # another process
    assert (bench.best(64), bench.timed) == ("second", [])
    monkeypatch.setattr(tuning, "_gpus", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Another")
    assert (bench.best(64), bench.timed) == ("second", ["first", "second"])
    assert len(json.loads((tmp_path / "minillm/tuning/kernels.json").read_text())) == 2
    assert [path.name for path in (tmp_path / "minillm/tuning").iterdir()] == ["kernels.json"]


@pytest.mark.parametrize(
    "damaged", ["", "[1, 2]", '{"Made Up 9000, triton', "3", '{"%s": {"op 64": "no such"}}', '{"%s": 7}']
)
def test_a_damaged_file_counts_as_none(bench: Bench, tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "minillm/tuning/kernels.json"
    path.parent.mkdir(parents=True)
    path.write_text(damaged.replace("%s", f"Made Up 9000, triton {triton.__version__}"))
    assert bench.best(64) == "second"
    assert json.loads(path.read_text())[f"Made Up 9000, triton {triton.__version__}"] == {"op 64": "second"}


def test_a_disk_that_takes_nothing_does_not_matter(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert (bench.best(64), bench.best(64)) == ("second", "second")
    assert len(bench.timed) == 2


ANOTHER = """
import sys
from minillm.kernels import tuning
class Gpu: name, best = "Made Up 9000", {}
for number in range(25):
    Gpu.best = {f"op {sys.argv[1]} {number}": "first"}
    tuning._keep(Gpu)
"""


def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    """Each finds something of its own at the same time, and reads and writes the same file."""
    command = [sys.executable, "-c", ANOTHER]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen([*command, str(number)], env=environment) for number in range(3)]
    assert [each.wait() for each in running] == [0, 0, 0]
    (stored,) = json.loads((tmp_path / "minillm/tuning/kernels.json").read_text()).values()
    assert len(stored) == 75
    assert [path.name for path in (tmp_path / "minillm/tuning").iterdir()] == ["kernels.json"]


def test_who_does_not_let_go_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuning, "PATIENCE", 0.05)
    folder = tmp_path / "minillm/tuning"
    folder.mkdir(parents=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert bench.best(64) == "second"
    finally:
        os.close(handle)
    assert (folder / "kernels.json").exists()


def test_nothing_is_left_of_what_could_not_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*given: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuning.json, "dump", full)
    assert bench.best(64) == "second"
    assert list((tmp_path / "minillm/tuning").iterdir()) == []


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "deep", "a link"])
def test_what_is_no_such_file_counts_as_none(bench: Bench, tmp_path: Path, kind: str) -> None:
    path, victim = tmp_path / "minillm/tuning/kernels.json", tmp_path / "victim"
    path.parent.mkdir(parents=True)
    victim.write_text("precious")
    if kind == "deep":
        path.write_text("[" * 100_000)
    elif kind == "a link":
        path.symlink_to(victim)
    else:
        (os.mkfifo if kind == "a pipe" else os.mkdir)(path)
    assert [bench.best(64), bench.best(64)] == ["second", "second"]
    assert victim.read_text() == "precious"
    assert [each.name for each in path.parent.iterdir()] == ["kernels.json"]


@pytest.mark.parametrize("where", ["relative", ""])
def test_a_place_relative_to_the_current_folder_is_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", where)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert bench.best(64) == "second"
    assert (tmp_path / "home/.cache/minillm/tuning/kernels.json").exists()
    assert not (tmp_path / "relative").exists()


def test_what_does_not_fit_is_left_out(bench: Bench) -> None:
    del bench.times["second"]
    assert bench.best(64) == "first"
    del bench.times["first"]
    with pytest.raises(ValueError, match="op 128: no configuration fits this GPU; tried first, second"):
        bench.best(128)


@pytest.mark.parametrize("why", ["a graph is recorded", "a graph is traced"])
def test_nothing_is_timed_while(bench: Bench, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Then the first is taken, unless the best is known."""
    bench.best(64)
    bench.timed.clear()
    recorded = why == "a graph is recorded"
    where, name = (torch.cuda, "is_current_stream_capturing") if recorded else (torch.compiler, "is_compiling")
    monkeypatch.setattr(where, name, lambda: True)
    assert (bench.best(64), bench.best(99), bench.timed) == ("second", "first", [])


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), "other"),
        ((8, 0), "sm_80"),
        ((8, 6), "other"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 0), "other"),
    ],
)
def test_classes(bench: Bench, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert tuning.prepare(GPU).kind == name


TABLES = [
    *attention.CONFIGS.values(), *attention.FP32.values(), *attention_backward.CONFIGS.values(),
    decode_attention.CONFIGS, decode_attention.FP32, mla_decode.CONFIGS, mla_decode.FP32, moe.CONFIGS, moe.FP32,
    moe.FEW_CONFIGS, fp8_linear.FEW, fp8_linear.MANY, fp8_linear.FP32, grouped_linear.ONE, grouped_linear.FEW,
    grouped_linear.MANY, grouped_linear.FP32, grouped_linear.FP32_ONE,
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table[0].name)
def test_every_class_has_configurations_of_different_names(table: tuple[Config, ...]) -> None:
    assert set(SHARED_MEMORY) == set(EVERY)
    for name in EVERY:
        few = candidates(table, name)
        assert 1 <= len({config.name for config in few}) == len(few) <= 4
