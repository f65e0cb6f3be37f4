"""Loops that another process compiles, and what happens where they are not there yet."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from minillm.ops.cpu import beside, loops, usable
from minillm.ops.cpu.beside import Beside
from minillm.ops.cpu.loops import jit
from tests.ops.test_kept import double, doubled


def test_a_description_has_the_types() -> None:
    given = (1, True, (np.float32(2), (0, 7)), np.empty(0, np.uint16), -5)
    assert numba.typeof(beside._alike(beside._described(given))) == numba.typeof(given)


def test_loops_of_folders_in_folders_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loops may have one name, and their files too: each is asked for by all of where it is."""
    asked: list[tuple[str, str]] = []
    made = Beside()
    monkeypatch.setattr(made, "_ask", lambda what: asked.append((what[0], what[1])))
    for module in (loops.experts, loops.tiles.experts):
        monkeypatch.setattr(module.experts, "is_kept", lambda types: False)
        assert not made._has(module.experts, (module.__name__,))
    found = [getattr(importlib.import_module(module), name) for module, name in asked]
    assert found == [loops.experts.experts, loops.tiles.experts.experts]


def test_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Then a loop is compiled here; and one that is kept is not asked for."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    monkeypatch.setattr(jit, "COMPILED", tmp_path)
    monkeypatch.setattr(usable, "beside", Beside())
    assert doubled(jit.kernel(double)) == [2, 2]
    assert usable.beside.gone
    monkeypatch.setattr(usable, "beside", Beside())
    assert doubled(jit.kernel(double)) == [2, 2]
    assert not usable.beside.asked


def test_the_current_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process beside looks for modules where this one does: a checkpoint's folder may hold a numpy.py."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('run')")
    commands: list[list[str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(beside.subprocess, "Popen", lambda command, **options: commands.append(command))
        patch.setattr(beside.threading.Thread, "start", lambda self: None)
        Beside()._start()
    done = subprocess.run(commands[0], cwd=tmp_path, input=b"", capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_loop_that_is_there_is_looked_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jit, "COMPILED", tmp_path)
    kernel, asked = jit.kernel(double), []
    doubled(kernel)
    made = Beside()
    monkeypatch.setattr(made, "_has", lambda *given: asked.append(given) or True)
    monkeypatch.setattr(usable, "beside", made)
    assert [doubled(kernel), doubled(kernel)] == [[2, 2], [2, 2]]
    assert len(asked) == 1


MEANWHILE = """
import time, torch
from minillm.ops.cpu import beside, loops, ops, usable
beside.start()
x, seen = torch.arange(6.0).view(2, 3), []
def add():
    assert torch.equal(ops.OPS["add"](x, x), 2 * x)
    seen.append((len(loops.pointwise.add.compiled.signatures), usable.to_record()))
add()
while usable.beside.waiting: time.sleep(0.1)
add()
print(seen, sum(loops.pointwise.add.compiled.stats.cache_hits.values()), usable.beside.gone)
"""


def test_plain_pytorch_until_a_loop_is_there(tmp_path: Path) -> None:
    """It is compiled elsewhere and found where it is kept; no step is recorded before."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", MEANWHILE],
        capture_output=True,
        text=True,
        timeout=200,
        env={**environment, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.stdout == "[(0, False), (1, True)] 1 False\n", done.stderr
    assert done.stderr == ""
