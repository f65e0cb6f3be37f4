"""Processes that are forked from one that has imported everything: to start Python and torch is most of what a short
process costs, and a command over ranks starts several.

`python -m tests.parallel.forks MODULE …` reads lines of JSON, and answers each with one: what `Forks` asks of it.
"""

from __future__ import annotations

import atexit
import importlib
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.conftest import ROOT

IMPORTED = ("minillm.generate", "minillm.serve.app", "minillm.engine.batching.engine", "minillm.tune.job", "numba")
IMPORTED += ("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.checkpoint")
ENDS = 300.0  # seconds that a process may take, and is killed then
WAITS = 200.0  # seconds that a rank waits for another
RANK, FAULT = "RANK", "TEST_FAULT"  # what is in the environment: a rank, and what goes wrong with one of them


class Run:
    """A process that has been started, and what it writes."""

    def __init__(self, forks: Forks, pid: int, folder: Path):
        self.forks, self.pid, self.folder = forks, pid, folder

    def ended(self) -> tuple[int | None, str, str]:
        """Its exit code, None where it did not end and was killed, and what it wrote to stdout and stderr."""
        code = self.forks.asked({"wait": self.pid})
        return code, self.read("out"), self.read("err")

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


class Forks:
    """The process that others are forked from, which has imported what they need."""

    def __init__(self, folder: Path, imported: Sequence[str] = IMPORTED):
        self.folder, self.count = folder, 0
        line = [sys.executable, "-m", "tests.parallel.forks", *imported]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(line, cwd=ROOT, env=environment, **pipes)

    def start(self, module: str, *argv: str, **environment: str) -> Run:
        """`python -m MODULE ARGV`, with these beside the environment of the tests."""
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        pid = self.asked({"start": [module, *argv], "environment": environment, "folder": str(folder)})
        return Run(self, pid, folder)

    def asked(self, what: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """All that were started have ended."""
        self.process.kill()
        self.process.communicate()


class Forked:
    """What `parallel/launch.py` asks of a `subprocess.Popen`."""

    def __init__(
        self, line: Sequence[str], env: dict[str, str], stdin: Any = None, stdout: Any = None, stderr: Any = None
    ):
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os._exit(_run(line[2:], env, (stdin, stdout, stderr)))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = ENDS) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(line: Sequence[str], environment: dict[str, str], streams: tuple[Any, Any, Any]) -> int:
    """What Python does with `-m MODULE …`, from its beginning to its end; the exit code."""
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]  # such as the folder of a launcher
    os.environ.clear()
    os.environ.update(environment)
    with open(os.devnull, "r+b") as nowhere:
        for number, stream in enumerate(streams):
            if stream is not None:
                os.dup2((nowhere if stream == subprocess.DEVNULL else stream).fileno(), number)
    code: Any = 0
    try:
        module, *argv = _faulty(list(line))
        sys.argv = [module, *argv]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that the module is there already
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code)


def _faulty(line: list[str]) -> list[str]:
    """What is run; of the rank that something is to go wrong with, so that it does."""
    fault = json.loads(os.environ.get(FAULT, "{}"))
    if str(fault.get("rank")) != os.environ.get(RANK):
        return line
    for name in ("weights", "data"):
        if name in fault:
            line[line.index(f"--{name}") + 1] = fault[name]
    if "step" in fault:
        from minillm.tune import training

        steps, clipped = itertools.count(1), training.clipped

        def killing(*given: Any) -> Any:
            if next(steps) == fault["step"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return clipped(*given)

        training.clipped = killing
    if "obeys" in fault:
        from minillm.engine.batching.runner import Runner

        def obey(*given: Any) -> None:
            if fault["obeys"] == "raise":
                raise RuntimeError("not today")
            os.kill(os.getpid(), getattr(signal, fault["obeys"]))

        Runner.obey = obey  # type: ignore[method-assign]
    return line


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    from minillm.parallel import launch

    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    launch.subprocess = SimpleNamespace(Popen=Forked, **names)  # type: ignore[assignment]
    made: dict[int, Forked] = {}
    for asked in map(json.loads, sys.stdin):
        if "wait" in asked:
            process = made.pop(asked["wait"])
            try:
                answer: int | None = process.wait()
            except subprocess.TimeoutExpired:
                process.kill()
                answer = None
        else:
            folder = Path(asked["folder"])
            with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
                line = [sys.executable, "-m", *asked["start"]]
                process = Forked(line, {**os.environ, **asked["environment"]}, subprocess.DEVNULL, out, err)
            made[process.pid], answer = process, process.pid
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
