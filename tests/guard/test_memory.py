"""The memory that is left is the least of what the system, the process' limit and a container leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minillm.guard import memory
from tests.conftest import ROOT


@pytest.mark.parametrize("free", [[7, None, None], [9, 7, None], [9, 8, 7], [None, None, 7]])
def test_the_least_counts(free: list, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("_free", "_below_limit", "_in_container"), free, strict=True):
        monkeypatch.setattr(memory, name, lambda value=value: value)
    assert memory.available() == 7
    memory.refuse_more(7, "this")
    with pytest.raises(ValueError, match="this takes about"):
        memory.refuse_more(8, "this")


def test_where_nothing_is_known_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.refuse_more(1 << 60, "this")


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_a_limit_of_the_process() -> None:
    script = "import resource; from minillm.guard import memory; resource.setrlimit(resource.RLIMIT_AS, (10**9, -1)); "
    script += "assert 0 < memory.available() < 10**9"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize(("limit", "left"), [("1000\n", 900), ("max\n", None), (None, None)])
def test_a_limit_of_a_container(limit: str | None, left: int | None, tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("100\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert memory._in_container(tmp_path) == left
