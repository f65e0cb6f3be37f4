"""Problems of products with matrices of all kinds: plain, of integers, in groups, of fp8. The forms of matrices in
groups are those that published formats become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minillm.ops import Ops
from minillm.weights.grouped import Fields, Grouped, count
from tests.helpers.kernel_cases import Case, Errors, exact, ulps

NF4 = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)  # fmt: skip
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
CODES: dict[str, Any] = {"scale": torch.int8, "factor": torch.float16, "span": 256}
FORMS = {
    "Q4_0": Grouped(4, 32, zero=8),
    "Q4_1": Grouped(4, 32, minimum=True),
    "Q5_0": Grouped(5, 32, zero=16),
    "Q8_0": Grouped(8, 32, zero=128),
    "Q4_K": Grouped(4, 32, minimum=True, **CODES),
    "Q5_K": Grouped(5, 32, minimum=True, **CODES),
    "Q6_K": Grouped(6, 16, zero=32, **CODES),
    "GPTQ": Grouped(4, 128, zero=None),
    "GPTQ of 8 bits": Grouped(8, 64, zero=None),
    "MLX": Grouped(6, 64, torch.bfloat16, minimum=True),
    "NF4": Grouped(4, 64, torch.float32, table=NF4),
    "NF4 in bf16": Grouped(4, 64, torch.float32, table=NF4, rounded=torch.bfloat16),
    "minima in fp16": Grouped(8, 32, torch.float32, minimum=True, rounded=torch.float16),
    "NVFP4": Grouped(4, 16, torch.float32, table=E2M1),
    "int8": Grouped(8, 0, torch.float32, zero=128),
    "int4": Grouped(4, 16, torch.int8, torch.float32, zero=8),
    "int4 with zeros": Grouped(4, 96, torch.int8, torch.float32, zero=None),
    "smallest groups": Grouped(4, 8, torch.bfloat16, zero=None, minimum=True),
}


@torch.no_grad()
def product(case: Case, run: Callable[..., Tensor], given: tuple[Any, ...], weight: Tensor) -> Errors:
    """A product with a matrix that stands for `weight`, fp64."""
    rows, biased = case.size(129), case.maybe()
    x, bias = case.part(rows, weight.shape[1]), case.values(len(weight))
    found = run(x, *given, bias) if biased else run(x, *given)
    x64, b64 = exact(x, bias if biased else torch.zeros(len(weight)))
    return {"result": ulps(found, x64 @ weight.t() + b64, x64.abs() @ weight.abs().t() + b64.abs())}


def linear(case: Case, ops: Ops) -> Errors:
    weight = case.values(case.size(130), case.size(300))
    return product(case, ops.linear, (weight,), weight.double().cpu())


def fp8_linear(case: Case, ops: Ops) -> Errors:
    outputs, inputs = case.size(300), case.size(300)
    raw = case.integers(256, outputs, inputs, dtype=torch.uint8)
    raw[(raw & 127) == 127] = 0  # NaN has a test of its own
    weight, scale = raw.view(torch.float8_e4m3fn), case.values(outputs, -(-inputs // 128), dtype=torch.float32) * 0.01
    factors = scale.double().cpu().repeat_interleave(128, 1)[:, :inputs]
    return product(case, ops.fp8_linear, (weight, scale), weight.cpu().to(torch.float64) * factors)


def drawn(case: Case, made: Grouped, outputs: int, inputs: int) -> Fields:
    """Numbers and scales of any size that W stays around 1 with, on the CPU."""
    groups, spans = count(inputs, made.group), count(inputs, made.span)

    def codes(size: float) -> Tensor:
        if made.factor:
            return torch.randint(-60, 61, (outputs, groups), generator=case.generator, dtype=torch.int8)
        return (torch.rand(outputs, groups, generator=case.generator) * size).to(made.scale)

    def factors(size: float) -> Tensor | None:
        whole = torch.rand(outputs, spans, generator=case.generator)
        return (whole * size / 60).to(made.factor) if made.factor else None

    step = 2 / 2**made.bits if made.table is None else 1
    q, zero = (torch.randint(2**made.bits, (outputs, size), generator=case.generator, dtype=torch.uint8)
               for size in (inputs, groups))  # fmt: skip
    least = {"least": codes(1), "floor": factors(1)} if made.minimum else {}
    return Fields(q, codes(step), factors(step), zero if made.zero is None else None, **least)


def meant(made: Grouped, fields: Fields) -> Tensor:
    """W in fp64. Rounded, it comes from its fp32 values: others could fall on the other side of a tie."""
    if made.rounded:
        return made.values(fields).double()
    inputs = fields.q.shape[1]
    group, span = (torch.arange(inputs) // (size or inputs) for size in (made.group, made.span))

    def spread(codes: Tensor, factors: Tensor | None) -> Tensor:
        return codes.double()[:, group] * (1.0 if factors is None else factors.double()[:, span])

    scale = spread(fields.scale, fields.factor)
    if made.table is not None:
        return torch.tensor(made.table).double()[fields.q.int()] * scale
    zero = made.zero or 0.0 if fields.zero is None else fields.zero.double()[:, group]
    return (fields.q.double() - zero) * scale - (0.0 if fields.least is None else spread(fields.least, fields.floor))


def grouped_linear(case: Case, ops: Ops) -> Errors:
    outputs, inputs, made = case.size(130), case.size(300), replace(case.of(list(FORMS.values())), tile=ops.tile)
    fields = drawn(case, made, outputs, inputs)
    parts = {name: case.on(part) for name, part in made.pack(fields).items()}
    return product(case, ops.grouped_linear, (parts, made, outputs), meant(made, fields))
