"""See `tests/gpu_report/__init__.py`. Exit code 0: nothing is wrong; 1: something is; 2: it could not be run."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.gpu_report.children import ROOT, Children
from tests.gpu_report.results import Results
from tests.gpu_report.steps import MINUTES, STEPS, chosen


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m tests.gpu_report", description="What only a GPU can tell, in one run.")
    made.add_argument("--list", action="store_true", help="the steps and what part of the time each has")
    made.add_argument(
        "--only", nargs="+", default=[], metavar="STEP[/TEXT]", help="these steps, or what in them has TEXT in its name"
    )
    made.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help="for all of it (default: 12)")
    made.add_argument("--out", type=Path, metavar="DIR", help="for the results (default: build/gpu-report/<time>)")
    made.add_argument("--checkpoints", type=Path, metavar="DIR", help="default: shared/checkpoints, here or beside")
    made.add_argument("--commit", help="where git cannot tell it, as in a copy")
    made.add_argument("--rehearse", action="store_true", help="tiny shapes in Triton's interpreter, without a GPU")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.list:
        for step in STEPS:
            print(f"{step.name:9}{step.minutes * arguments.minutes / MINUTES:5.1f} min  {step.title}")
        return 0
    try:
        if arguments.minutes <= 0:
            raise ValueError(f"--minutes {arguments.minutes:g} must be more than 0")
        steps, now = chosen(arguments.only), datetime.datetime.now()
        folder = arguments.out or ROOT / f"build/gpu-report/{now:%Y%m%d-%H%M%S}"
        title = f"GPU report of {now:%Y-%m-%d %H:%M}, commit {arguments.commit or commit()}"
        results = Results(folder.resolve(), title + (" (a rehearsal on the CPU)" if arguments.rehearse else ""))
    except ValueError as error:
        print(f"gpu_report: error: {error}", file=sys.stderr)
        return 2
    print(f"results go to {folder}", flush=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as cache:
        # What is tuned here is of this run alone. Triton's own cache of compiled kernels stays where it is.
        children = Children(results, {"TRITON_INTERPRET": str(int(arguments.rehearse))}, Path(cache))
        try:
            return run(children, steps, arguments)
        finally:
            children.end()
            signal.signal(signal.SIGTERM, before)


def run(children: Children, steps: dict[str, list[str]], arguments: argparse.Namespace) -> int:
    """Each step has its part of the time that is left, so that what one does not need is for those behind it."""
    results, end = children.results, time.monotonic() + 60 * arguments.minutes
    settings: dict[str, Any] = {"rehearse": arguments.rehearse, "checkpoints": checkpoints(arguments.checkpoints)}
    left = [step for step in STEPS if step.name in steps]
    while left:
        remaining, parts = end - time.monotonic(), sum(step.minutes for step in left)
        step, began = left.pop(0), time.monotonic()
        if arguments.rehearse:  # the interpreter is slow
            step = step._replace(item_seconds=10 * step.item_seconds)
        limit = max(remaining, 0) * step.minutes / parts
        workers = 1 if arguments.rehearse else min(step.workers, os.cpu_count() or 1)
        print(f"{step.name}: {step.title}; at most {limit:.0f} s", flush=True)
        cut = children.run(step, {"run": settings, "only": steps[step.name]}, limit, workers)
        results.summarise(step, time.monotonic() - began, cut)
        results.keep_tuning(children.cache / "alone")
        for row in results.of(step.name):
            settings |= row.get("facts", {})
        if step.name == "machine" and settings.pop("gpu", None) is False:
            print("gpu_report: error: there is no GPU here; --rehearse runs it on the CPU", file=sys.stderr)
            return 2
        if step.name == "ops":
            settings["broken"] = sorted({row["item"].split(",")[0] for row in results.of("ops") if row.get("raised")})
    return int(any(row["ok"] is False for row in results.rows.values()))


def checkpoints(given: Path | None) -> list[str]:
    """The folders of checkpoints with recorded outputs."""
    for folder in [given] if given else [ROOT / "shared/checkpoints", ROOT.parent / "shared/checkpoints"]:
        if found := sorted(str(path.parents[1].resolve()) for path in folder.glob("*/expected/outputs.json")):
            return found
    return []


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
