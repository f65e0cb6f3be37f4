"""Every op against its problem in fp64, from `tests/helpers/kernel_problems.py`, within the budgets written there."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from minillm.ops import select
from tests.gpu_report.worker import Item, Run, brief, gone
from tests.helpers import kernel_cases
from tests.helpers.attention_problems import BESIDE
from tests.helpers.kernel_cases import Aligned, Awkward, Case
from tests.helpers.kernel_problems import BUDGETS, PROBLEMS

SIZES: dict[str, Callable[[int], Any]] = {"aligned": Aligned, "awkward": Awkward}
SEEDS = 2  # problems of each kind: what else an op is told is drawn anew


def items(run: Run) -> list[Item]:
    """Sizes outermost: where time is cut, each op has been seen at those of real models."""
    if run.rehearse:
        kernel_cases.shrink(run.patch)
    kernel_cases.poison(run.patch)
    return [
        (f"{op}, {dtype}, {size}", partial(check, run, op, dtype, size))
        for size in SIZES
        for dtype in run.dtypes
        for op in [*PROBLEMS, *BESIDE]
    ]


def check(run: Run, op: str, name: str, size: str) -> None:
    """One row: the largest error as a share of its budget."""
    dtype, worst, where, raised = run.dtypes[name], 0.0, "", list[str]()
    budget = BUDGETS["attention" if op in BESIDE else op]
    for seed in range(SEEDS):
        try:
            case = Case(SIZES[size](seed), dtype, run.device)
            errors = BESIDE[op](case) if op in BESIDE else PROBLEMS[op](case, select("triton", run.device, dtype))
        except Exception as error:
            traceback.print_exc()
            raised.append(f"seed {seed}: {brief(error)}")
            if gone(run):
                break
            continue
        for of, error in errors.items():
            used = share(error, budget["gradient" if of.startswith("gradient") else "result"][dtype != torch.float32])
            if not used <= worst:  # NaN too
                worst, where = used, f"{of}, seed {seed}"
    right = worst <= 1 and not raised
    wrong = "" if worst <= 1 else f"{where}: {worst:.3g} of its budget\n"
    values = {"error / budget": worst, "where": where}
    run.row(values, right, wrong + "\n".join(raised), raised=bool(raised))


def share(error: float, budget: float) -> float:
    return error / budget if budget else 0.0 if error == 0 else math.inf
