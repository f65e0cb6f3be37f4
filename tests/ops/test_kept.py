"""Compiled loops that are kept: whole, or compiled again."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numba.core import bytecode

from minillm import ops
from minillm.ops.cpu import kept, loops
from minillm.ops.cpu.loops import jit


def double(at: int, count: int, like: Any) -> None:
    x = jit.array(at, count, like)
    for i in range(count):
        x[i] *= 2


def doubled(kernel: Any) -> list[float]:
    x = torch.ones(2)
    kernel(x.data_ptr(), 2, np.empty(0, np.float32))
    return x.tolist()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jit, "COMPILED", tmp_path)
    jit._say.cache_clear()


@pytest.mark.usefixtures("quiet")
def test_a_disk_that_is_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.Path, "replace", full)
    kernels = jit.kernel(double), jit.kernel(double)
    assert [doubled(each) for each in kernels] == [[2, 2], [2, 2]]
    assert list(tmp_path.iterdir()) == []
    line = f"minillm: compiled loops are not kept in {tmp_path}: No space left on device; set XDG_CACHE_HOME"
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.usefixtures("quiet")
def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(jit, "COMPILED", None)
    kernels = jit.kernel(double), jit.kernel(double)
    assert [doubled(each) for each in kernels] == [[2, 2], [2, 2]]
    err = capsys.readouterr().err
    assert err.startswith("minillm: loops are compiled in every run, for about half a minute, as there is no place")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("quiet")
def test_what_is_kept_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    types = tuple(map(numba.typeof, (1, 2, np.empty(0, np.float32))))
    assert not jit.kernel(double).is_kept(types)
    doubled(jit.kernel(double))
    assert jit.kernel(double).is_kept(types)
    assert not jit.kernel(double).is_kept(types[:2])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    """The loop of other types under its name."""
    kernel, x = jit.kernel(double), torch.ones(2, dtype=torch.float64)
    kernel(x.data_ptr(), 2, np.empty(0, np.float64))
    (other,) = set(path.parent.iterdir()) - {path}
    other.replace(path)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""), "cut": cut, "a bit": flip, "swapped": swap, "a link": link,
    "a pipe": pipe, "no loop": lambda path: kept.write(path, pickle.dumps("text")),
    "of a group": lambda path: path.chmod(0o620), "of all": lambda path: path.chmod(0o602),
}  # fmt: skip


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_compiled_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And kept anew, without a word."""
    doubled(jit.kernel(double))
    (path,) = tmp_path.iterdir()
    whole = path.stat().st_size
    DAMAGE[kind](path)
    kernel = jit.kernel(double)
    assert (doubled(kernel), sum(kernel.compiled.stats.cache_hits.values())) == ([2, 2], 0)
    again = jit.kernel(double)
    assert (doubled(again), sum(again.compiled.stats.cache_hits.values())) == ([2, 2], 1)
    assert path.stat().st_size >= whole // 2
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", ["a folder for a file", "no folder", "a file for the folder"])
def test_what_cannot_be_kept_is_not(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor anywhere else, where numba would: beside the source, by which loops of another day are taken for these."""
    doubled(jit.kernel(double))
    (path,) = tmp_path.iterdir()
    if kind == "a folder for a file":
        folder(path)
        (path / "full").touch()
    else:
        shutil.rmtree(tmp_path)
        if kind == "a file for the folder":
            tmp_path.touch()
    kernel = jit.kernel(double)
    assert (doubled(kernel), doubled(jit.kernel(double))) == ([2, 2], [2, 2])
    err = capsys.readouterr().err
    assert err.startswith(f"minillm: compiled loops are not kept in {tmp_path}: ")
    assert err.count("\n") == 1
    assert not list(Path(__file__).parent.rglob("*.nb[ic]"))


@jit.parallel
def _number_of_threads(x: Any) -> None:
    for i in numba.prange(len(x)):
        x[i] = jit.threads()


def threaded(at: int, count: int, like: Any) -> None:
    x = jit.array(at, count, like)
    x[0] = jit.threads()
    _number_of_threads(x)


def addressed(at: int, count: int, like: Any) -> None:
    jit.array(at, count, like)[0] = numba.get_num_threads()


@pytest.mark.usefixtures("quiet")
def test_a_loop_with_an_address_in_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loops can ask for the number of threads and be kept, though not by numba's own function."""
    expected = [float(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))] * 2
    assert doubled(jit.kernel(threaded)) == expected
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["threaded"]
    again = jit.kernel(threaded)
    assert doubled(again) == expected
    assert again.compiled.stats.cache_hits
    assert capsys.readouterr().err == ""
    doubled(jit.kernel(addressed))
    assert "addressed is compiled in every run: it has addresses" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1


def test_no_loop_asks_numba_for_threads() -> None:
    """Each would be compiled anew in every process, the largest for a minute."""
    folder = Path(loops.__file__).parent
    assert not [path for path in folder.rglob("*.py") if "numba.get_num_threads(" in path.read_text(encoding="utf-8")]


def test_somebody_elses_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.write(tmp_path / "loop", b"code")
    assert kept.read(tmp_path / "loop") == b"code"
    monkeypatch.setattr(kept, "_user", lambda: os.geteuid() + 1)
    assert kept.read(tmp_path / "loop") is None


def test_many_write_at_once(tmp_path: Path) -> None:
    """Each finds all of what one of them wrote, and nothing is left over; but of who was killed an hour ago."""
    stale, fresh = tmp_path / "1.part", tmp_path / "2.part"
    stale.touch()
    fresh.touch()
    os.utime(stale, (0, 0))
    texts = [bytes([each]) * 100_000 for each in range(4)]

    def write(text: bytes) -> list[bytes | None]:
        return [kept.read(tmp_path / "loop") for _ in range(20) if kept.write(tmp_path / "loop", text) is None]

    with ThreadPoolExecutor(4) as pool:
        found = [each for some in pool.map(write, texts) for each in some]
    assert len(found) == 80
    assert set(found) <= set(texts)
    assert sorted(tmp_path.iterdir()) == [fresh, tmp_path / "loop"]


def test_numba_is_told_not_to_compile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert ops.select("auto", torch.device("cpu"), torch.float32) is ops.CPU
    line = "minillm: plain PyTorch in use, which is slower: NUMBA_DISABLE_JIT is set\n"
    assert capsys.readouterr().err == line


def test_functions_of_two_processes_have_names_of_their_own() -> None:
    """Else machine code that two processes have kept would be mixed up in a third, where the same names meet. A number
    drawn from 2^48 is below 2^24 once in 16 million."""
    assert jit.function is not None  # the loops are imported
    assert next(bytecode.FunctionIdentity._unique_ids) > 2**24
