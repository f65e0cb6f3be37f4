"""Hostile inputs for as long as you like: `python -m tests.fuzz --minutes 30`, or `make fuzz MINUTES=30`.

Exit code 0: all cases were borne, 1: some were not; 2: it could not be run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import queue
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.case import Case
from tests.fuzz.classes import CLASSES, commands
from tests.fuzz.pool import FAILURES, FINE, REFUSED, Outcome, Worker

KEPT = 2  # cases of one kind of failure


class Record:
    """What came of the cases, and of each kind of failure the first few."""

    def __init__(self, keep: Path | None):
        self.keep = keep
        self.counts = {name: collections.Counter[str]() for name in CLASSES}
        self.failures: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        self.slowest: dict[str, float] = collections.defaultdict(float)
        self.most: dict[str, int] = collections.defaultdict(int)

    def add(self, name: str, seed: int, at: int, case: Case, outcome: Outcome) -> None:
        self.counts[name][outcome.verdict] += 1
        self.slowest[name] = max(self.slowest[name], outcome.seconds)
        self.most[name] = max(self.most[name], outcome.grown)
        if not outcome.failed:
            return
        same = self.failures.setdefault((name, outcome.verdict, kind(outcome.said)), [])
        if len(same) == KEPT:
            return
        found = {"class": name, "verdict": outcome.verdict, "said": outcome.said[:1000], "seed": seed, "number": at}
        found |= {"name": case.name, "seconds": outcome.seconds, "grown": outcome.grown}
        same.append(found)
        if self.keep:
            self._save(self.keep / f"{name}-{seed}-{at}", case, {**found, "stderr": outcome.err[:5000]})

    def _save(self, folder: Path, case: Case, found: dict[str, Any]) -> None:
        """The checkpoint, and how it is run."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "checkpoint").mkdir(parents=True)
        argv = case.write(folder / "checkpoint")
        (folder / "case.json").write_text(json.dumps({**found, "argv": argv}, indent=1))

    def as_json(self) -> dict[str, Any]:
        classes = {
            name: {"cases": count.total(), **count, "slowest": self.slowest[name], "most_bytes": self.most[name]}
            for name, count in self.counts.items()
            if count
        }
        return {"classes": classes, "failures": list(itertools.chain(*self.failures.values()))}

    def table(self) -> str:
        kinds = ("cases", FINE, REFUSED, *FAILURES, "slowest s", "most MB")
        rows = [["class", *kinds]]
        for name, count in self.counts.items():
            if count:
                seen = [name, count.total(), *(count[each] for each in kinds[1:-2])]
                seen += [round(self.slowest[name], 1), round(self.most[name] / 1e6)]
                rows.append([str(each) for each in seen])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(each.rjust(w) for each, w in zip(row, widths, strict=True)) for row in rows)


def kind(said: str) -> str:
    """What is left of a message without what is of the one input."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|/\S+/|0x\w+|\d+", "…", said)[:160]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m tests.fuzz", description="Hostile inputs, and what becomes of them.")
    made.add_argument("--minutes", type=float, default=5.0, metavar="M", help="for all of it (default: 5)")
    made.add_argument("--cases", type=int, metavar="N", help="of each class, instead of a time")
    made.add_argument("--classes", nargs="+", choices=list(CLASSES), default=list(CLASSES), metavar="CLASS",
                      help=f"of {', '.join(CLASSES)} (default: all)")  # fmt: skip
    made.add_argument("--seed", type=int, help="of the first worker's cases (default: the time)")
    made.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    made.add_argument("--keep", type=Path, metavar="FOLDER", help="a folder for the cases that fail")
    made.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    return made


def feed(names: Sequence[str], seed: int, deadline: float, limit: int | None, given: queue.Queue[Any]) -> None:
    """Cases of the classes in turn, until the time is over; then an end for each worker."""
    streams = {name: CLASSES[name](seed) for name in names}
    numbers = itertools.count() if limit is None else range(limit)
    for at in numbers:
        for name, stream in streams.items():
            if time.monotonic() > deadline:
                return
            given.put((name, at, next(stream)))


def work(record: Record, seed: int, classes: Sequence[str], given: queue.Queue[Any], lock: threading.Lock) -> None:
    try:
        with Worker(commands(classes)) as worker:
            while (item := given.get()) is not None:
                name, at, case = item
                outcome = worker.run(case)
                with lock:
                    record.add(name, seed, at, case, outcome)
                    progress(record)
    except BaseException:  # a worker that does not start, say: nobody would take what is given
        traceback.print_exc()
        os._exit(2)


def progress(record: Record) -> None:
    if sys.stderr.isatty():
        done = sum(count.total() for count in record.counts.values())
        failed = sum(count[each] for count in record.counts.values() for each in FAILURES)
        print(f"\r{done:,} cases, {failed:,} failures of {len(record.failures)} kinds", end="\x1b[K", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    deadline = time.monotonic() + (60 * arguments.minutes if arguments.cases is None else 1e9)
    record, lock, given = Record(arguments.keep), threading.Lock(), queue.Queue[Any](2 * arguments.workers)
    threads = [
        threading.Thread(target=work, args=(record, seed, arguments.classes, given, lock), daemon=True)
        for _ in range(arguments.workers)
    ]
    for thread in threads:
        thread.start()
    with contextlib.suppress(KeyboardInterrupt):
        feed(arguments.classes, seed, deadline, arguments.cases, given)
    for _ in threads:
        given.put(None)
    for thread in threads:
        thread.join()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if arguments.json:
        print(json.dumps({"seed": seed, **record.as_json()}, indent=1))
        return int(bool(record.failures))
    print(record.table(), f"seed {seed}", sep="\n")
    for found in itertools.chain(*record.failures.values()):
        print(f"\n{found['class']} {found['number']}, {found['verdict']}: {found['name']!r}\n  {found['said'][:300]!r}")
    return int(bool(record.failures))


if __name__ == "__main__":
    sys.exit(main())
