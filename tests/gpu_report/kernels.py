"""Each kernel at the shapes of published models (`minillm/bench/cases.py`): with the best configuration first, and then
what PyTorch takes for the same, plain and compiled."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch

from minillm.bench.cases import Case, Cases, Sizes
from minillm.bench.kernels import measured
from minillm.ops import select
from tests.gpu_report.timing import seconds
from tests.gpu_report.worker import Item, Run
from tests.helpers import kernel_cases

SMALL = Sizes(
    tokens=6, past=32, batch=2, hidden=128, inner=40, heads=4, kv_heads=2, head_dim=8, latent_heads=(3,), rank=12,
    rotary=4, experts=5, top_k=2, expert_hidden=16, expert_inner=8, expert_tokens=(1, 40), vocabulary=50, rows=(1, 3),
    prefill=20,
)  # fmt: skip


class Made:
    """The cases in their order, each made when it is asked for, and forgotten with the next."""

    def __init__(self, run: Run, sizes: Sizes):
        self.run, self.sizes, self.cases = run, sizes, iter([])  # type: tuple[Run, Sizes, Iterator[Case]]

    def __call__(self, op: str, shape: str) -> Case:
        for _ in range(2):
            for case in self.cases:
                if (case.op, case.shape) == (op, shape):
                    return case
            self.cases = Cases(self.run.device, self.run.dtype, self.sizes).all()  # from the beginning
        raise AssertionError(f"{op}, {shape} is no case")


def items(run: Run) -> list[Item]:
    if run.rehearse:
        kernel_cases.shrink(run.patch)
    sizes = SMALL if run.rehearse else Sizes()
    names = [(each.op, each.shape, each.plain) for each in Cases(torch.device("meta"), run.dtype, sizes).all()]
    made = Made(run, sizes)
    alone = [(f"{op}, {shape}", partial(time, run, made, op, shape, False)) for op, shape, _ in names]
    return alone + [
        (f"{op}, {shape}, against PyTorch", partial(time, run, made, op, shape, True))
        for op, shape, plain in names
        if plain
    ]


def time(run: Run, made: Made, op: str, shape: str, against: bool) -> None:
    case = made(op, shape)
    given = case if against else dataclasses.replace(case, plain=False)
    with torch.inference_mode(False), torch.no_grad():
        triton = select("triton", run.device, run.dtype)
        found = measured(given, triton, run.copy or float("nan"), run.peak or float("nan"), seconds(run.device))
    values = {"us": found["seconds"] * 1e6, "MB": found["bytes"] / 1e6, "GFLOP": found["flops"] / 1e9}
    values |= {"of copy": found["copy_share"], "of peak": found["matrix_share"]}
    values |= {f"{name}, times": found[f"over_{name}"] for name in ("reference", "compiled", "sdpa")}
    run.row(values)
