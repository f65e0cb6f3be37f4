"""Cases through workers, with a clock beside them, and a verdict for each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.conftest import ROOT
from tests.fuzz.case import Case

SECONDS = 30.0  # that a case may take
GROWN_BYTES = 900_000_000  # and what it may take, with its process for a checkpoint's programs, which has 640 MB
MAX_LINE = 4500  # characters of a line on stderr
COMMANDS = ("generate", "explain", "plan")
START_SECONDS = 300.0

# What is right: work done, or refused in one line.
FINE, REFUSED = "fine", "refused"
LACKS = re.compile("not enough memory|MemoryError|bad_alloc|enforce fail at alloc|memory allocation of")
FAILURES = ("traceback", "fault", "signal", "hang", "memory", "lines", "output")


@dataclass(frozen=True)
class Outcome:
    """How a case ended. `said` is what tells one failure from another."""

    verdict: str
    said: str
    seconds: float
    grown: int = 0
    code: int | None = None
    out: str = ""
    err: str = ""

    @property
    def failed(self) -> bool:
        return self.verdict in FAILURES


class Worker:
    """One long-lived process that runs cases, in a scratch folder of its own."""

    def __init__(self, commands: Sequence[str] = COMMANDS):
        self.scratch = Path(tempfile.mkdtemp(prefix="minillm-fuzz-"))
        requests, self.requests = os.pipe()
        self.replies, replies = os.pipe()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(requests), str(replies), *commands],
            cwd=self.scratch, env=environment, pass_fds=(requests, replies), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(requests)
        os.close(replies)
        self.unread = b""
        try:
            self.child: int = self._reply(START_SECONDS)["pid"]
        except BaseException:
            shutil.rmtree(self.scratch)
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self.requests)
        self.process.kill()
        if error is not None or self.process.wait():
            self._kill()
        self.process.wait()
        os.close(self.replies)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def run(self, case: Case, seconds: float = SECONDS) -> Outcome:
        folder = self.scratch / "case" / "checkpoint"
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        started = time.monotonic()
        os.write(self.requests, json.dumps({"argv": case.write(folder)}).encode() + b"\n")
        reply = self._reply(seconds)
        hung = not reply
        if hung:
            self._kill()
            reply = self._reply(START_SECONDS)
        if "died" in reply:
            self.child = self._reply(START_SECONDS)["pid"]
        self._tidy()
        return judged(case, reply, hung, time.monotonic() - started)

    def _tidy(self) -> None:
        """Remove what a command wrote beside its folder."""
        for path in self.scratch.iterdir():
            if path.name not in ("case", "honest", "out", "err"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)

    def _reply(self, seconds: float) -> dict[str, Any]:
        """The next object; empty where none comes in time."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.unread:
            if not select.select([self.replies], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return {}
            data = os.read(self.replies, 1 << 16)
            if not data:
                raise RuntimeError(f"the worker ended with {self.process.wait()}")
            self.unread += data
        line, _, self.unread = self.unread.partition(b"\n")
        return dict(json.loads(line))


def judged(case: Case, reply: dict[str, Any], hung: bool, seconds: float) -> Outcome:
    """A verdict on what a worker said of a case."""
    err, out = reply.get("err", ""), reply.get("out", "")
    verdict, said = (
        ("hang", f"more than {SECONDS:.0f} s")
        if hung
        else ("signal", signal_name(-reply["died"]))
        if "died" in reply
        else _verdict(case, reply["code"], out, err, reply["grown"])
    )
    return Outcome(verdict, said, seconds, reply.get("grown", 0), reply.get("code"), out, err)


def signal_name(number: int) -> str:
    return signal.Signals(number).name if number in list(signal.Signals) else f"exit {-number}"


def _verdict(case: Case, code: int | None, out: str, err: str, grown: int) -> tuple[str, str]:
    lines = err.splitlines()
    last = lines[-1] if lines else ""
    if code is None or "Traceback (most recent" in err or "panicked at" in err:
        return "traceback", next((each for each in lines if "panicked at" in each), last)
    if grown > GROWN_BYTES or LACKS.search(last):
        return "memory", f"{grown / 1e6:,.0f} MB: {last}"
    if code not in (0, 2):
        return "fault", last if code == 1 else f"exit {code}: {last}"
    errors = [line for line in lines if line.startswith("minillm: error: ")]
    foreign = [line for line in lines if line and not line.startswith("minillm: ") and not _ours(line)]
    if foreign or len(errors) != (code == 2) or any(len(line) > MAX_LINE for line in lines):
        return "lines", (foreign or ["an error and exit 0" if errors else "no error line", *lines])[0]
    if any(not each.isprintable() for each in err.replace("\n", "")):
        return "lines", f"what does not print: {err[:200]!r}"
    return _printed(case, code, out)


def _ours(line: str) -> bool:
    """What generate says of its speed."""
    return bool(re.match(r"prompt \d+ tokens, .* tok/s", line))


def _printed(case: Case, code: int, out: str) -> tuple[str, str]:
    if code:
        return ("output", f"{out[:80]!r} before an error") if out and "--json" in case.argv else (REFUSED, "")
    if "--json" in case.argv and not {"-h", "--help"} & set(case.argv) and len(out) < 200_000:
        try:
            json.loads(out, parse_constant=lambda name: int(name))
        except ValueError as error:
            return "output", f"no JSON: {error}"
    return FINE, ""
