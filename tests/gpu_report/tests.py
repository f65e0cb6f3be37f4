"""The tests of `make gpu` by groups, each in one call of pytest; what steps before have not asked comes first."""

from __future__ import annotations

import importlib.util
from collections import Counter
from functools import partial
from typing import Any

from tests.gpu_report.worker import Item, NotRun, Run

NEEDED = ("pytest", "hypothesis", "safetensors")
KERNELS, GRAPHS = "tests/kernels/test_gpu.py", "tests/kernels/test_gpu_graphs.py"
EVERY = "test_every_configuration"
GROUPS = {
    "recorded steps": (GRAPHS, ""),
    "configurations of attention": (KERNELS, f"{EVERY} and attention"),
    "configurations of its gradients": (KERNELS, f"{EVERY} and backward"),
    "configurations of decoding": (KERNELS, f"{EVERY} and (decode or latents)"),
    "configurations of products": (KERNELS, f"{EVERY} and not (attention or backward or decode or latents)"),
    "whole models, tuning": (KERNELS, f"not (test_op or {EVERY})"),
    "ops, aligned": (KERNELS, "test_op_at_aligned"),
    "ops, awkward": (KERNELS, "test_op and not test_op_at_aligned"),
}
EACH = 20  # tests between two rows


def items(run: Run) -> list[Item]:
    return [(name, partial(group, run, file, words)) for name, (file, words) in GROUPS.items()]


class Told:
    """What pytest tells of each test; the outcome counts, and what failed has a row of its own."""

    def __init__(self, run: Run):
        self.run, self.counts, self.name = run, Counter[str](), run.item

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":  # set up and taken down is nothing to count
            self.counts[report.outcome] += 1
            if report.outcome == "failed":
                lines = report.longreprtext.splitlines()
                message = next((line for line in lines if line.startswith("E ")), lines[-1] if lines else "")
                self.run.row(ok=False, message=message, item=report.nodeid.split("::")[-1])
            if self.counts.total() % EACH == 0:
                self.tell("not to the end")

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self.run.row(ok=False, message=report.longreprtext[-500:], item=f"{self.name}: {report.nodeid}")

    def tell(self, message: str = "") -> None:
        self.run.row(dict(self.counts), message=message, item=self.name)


def group(run: Run, file: str, words: str) -> None:
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise NotRun(f"no {', '.join(absent)} here")
    import pytest

    told = Told(run)
    arguments = [file, "-k", words, "-q", "--tb=short", "--show-capture=no", "-p", "no:cacheprovider"]
    pytest.main(arguments, plugins=[told])
    told.tell()
