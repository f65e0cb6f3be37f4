"""A step in processes of its own, under two limits: that of the step, after which what has not been measured is named,
and that of each measurement, after which it counts as hung and the others go on in a fresh process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gpu_report.results import Results
from tests.gpu_report.steps import Step

ROOT = Path(__file__).parents[2]
WORKER = [sys.executable, "-m", "tests.gpu_report.worker"]
STARTS = 12  # of processes for one part of a step: an end to crashes


class Children:
    """Starts them, and ends all of them with the run."""

    def __init__(self, results: Results, environment: dict[str, str], cache: Path, command: list[str] = WORKER):
        self.results, self.environment, self.cache, self.command = results, environment, cache, command
        self.running: set[subprocess.Popen[bytes]] = set()
        self.ended = False

    def end(self) -> None:
        self.ended = True
        for child in list(self.running):
            kill(child)

    def run(self, step: Step, settings: dict[str, Any], seconds: float, workers: int) -> str | None:
        """All of a step; returns what was cut from it."""
        deadline, left = time.monotonic() + seconds, list[str]()

        def one(part: int) -> None:
            left.extend(self._part(step, settings, part, workers, deadline))

        parts = [threading.Thread(target=one, args=(part,), daemon=True) for part in range(workers)]
        for each in parts:
            each.start()
        for each in parts:
            each.join()
        if not left:
            return None
        late = time.monotonic() >= deadline
        cut = f"cut after {seconds:.0f} s" if late else f"given up after {STARTS} processes"
        cut += f", {len(left)} not run"
        row = {"step": step.name, "item": "(cut)", "ok": None, "values": {}, "message": f"{cut}: {', '.join(left)}"}
        self.results.add(row)
        return cut

    def _part(self, step: Step, settings: dict[str, Any], part: int, parts: int, deadline: float) -> list[str]:
        """The measurements of one process, or of those that follow where it dies; returns those not come to."""
        items: list[str] | None = None
        done: list[str] = []

        def note(item: str, message: str) -> None:
            row = {"step": step.name, "item": item, "ok": False, "values": {}, "message": message, "raised": True}
            self.results.add(row)

        for _ in range(STARTS):
            begun = None
            given = {**settings, "step": step.name, "skip": done, "part": part, "parts": parts}
            given["run"] = {**settings["run"], "seconds": deadline - time.monotonic()}
            child, why, patience = self._start(given, parts), "", 5.0
            try:
                for line in lines(child, step.item_seconds, deadline):
                    items = line.get("items", items)
                    begun = line.get("begin", begun)
                    if "row" in line:
                        self.results.add({"step": step.name, **line["row"]})
                    if "end" in line:
                        done, begun = [*done, line["end"]], None
            except TimeoutError:
                why, patience = f"hung: no end after {step.item_seconds:.0f} s", 0.0
            code = kill(child, patience)
            self.running.discard(child)
            if self.ended or time.monotonic() >= deadline:
                break
            why = why or f"the process ended with {ending(code)}; see log.txt"
            if begun is not None:
                done = [*done, begun]
                note(begun, why)
            elif items is None and code:
                note(f"(start of part {part})", why)
                return []
            if set(items or []) <= set(done):
                return []
        return [name for name in items or [f"all of part {part}"] if name not in done]

    def _start(self, given: dict[str, Any], parts: int) -> subprocess.Popen[bytes]:
        threads = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // parts, 1))}
        # What processes tune at the same time is nothing to remember.
        cache = {"XDG_CACHE_HOME": str(self.cache / ("together" if parts > 1 else "alone"))}
        with (self.results.folder / "log.txt").open("ab") as log:
            child = subprocess.Popen(
                [*self.command, json.dumps(given)], cwd=ROOT,
                env={**threads, **os.environ, **self.environment, **cache},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, preexec_fn=os.setpgrp,
            )  # fmt: skip
        self.running.add(child)
        return child


def lines(child: subprocess.Popen[bytes], item_seconds: float, deadline: float) -> Iterator[dict[str, Any]]:
    """What a process sends, until it closes its stdout. Raises TimeoutError at the deadline of the step, and where a
    measurement takes longer than it may."""
    assert child.stdout is not None
    until, held = deadline, b""
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
            raise TimeoutError
        if not (read := os.read(child.stdout.fileno(), 1 << 16)):
            return
        *whole, held = (held + read).split(b"\n")
        for line in map(json.loads, whole):
            if "begin" in line or "end" in line:
                until = min(time.monotonic() + item_seconds, deadline) if "begin" in line else deadline
            yield line


def kill(child: subprocess.Popen[bytes], patience: float = 0.0) -> int:
    """End it, its own children too, where it does not end by itself within so many seconds; its exit code."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=patience)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def ending(code: int) -> str:
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
