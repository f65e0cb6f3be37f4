"""The memory that is left is the least of what the system, the control group and the limit of the process leave."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from minillm.guard import memory
from tests.conftest import ROOT


def test_what_is_left_of_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine, the control group (files that it holds are given back) and the process: the least."""
    said = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable:    700 kB\n",
        "/sys/fs/cgroup/memory.max": "600000\n",
        "/sys/fs/cgroup/memory.current": "500000\n",
        "/sys/fs/cgroup/memory.stat": "anon 1\nfile 300000\n",
        "/proc/self/limits": "Max address space         unlimited            unlimited            bytes\n",
    }
    monkeypatch.setattr(memory, "_text", lambda path: said.get(path, ""))
    assert memory.available() == 400_000
    said["/sys/fs/cgroup/memory.max"] = "max"
    assert memory.available() == 700 * 1024
    said["/proc/self/limits"] = "Max address space         900000               unlimited            bytes\n"
    said["/proc/self/status"] = "VmSize:\t     800 kB\n"
    assert memory.available() == 900_000 - 800 * 1024
    said.clear()
    assert memory.available() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_more_than_is_left_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 7)
    memory.refuse(7, "this", "leave it")
    with pytest.raises(ValueError, match=r"this takes .* are left; leave it"):
        memory.refuse(8, "this", "leave it")
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.refuse(1 << 60, "this", "leave it")


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_a_limit_of_the_process() -> None:
    script = "import resource; from minillm.guard import memory; resource.setrlimit(resource.RLIMIT_AS, (10**9, -1)); "
    script += "assert 0 < memory.available() < 10**9"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
