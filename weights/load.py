"""From a checkpoint's tensors to a model's parameters: plan by name, check every shape, then stream.

Peak memory is the parameters plus one tensor, as read and dequantised: each is copied from its mapped file straight
into the rows that it fills, on the target device and in the target dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from minillm.weights import fp8, schemes
from minillm.weights.checkpoint import DTYPES, Checkpoint, TensorInfo, brief
from minillm.weights.rules import Destination, Plan, rows

MISSHAPEN = "tensors of another shape"


def check(planned: Plan, checkpoint: Checkpoint) -> None:
    """Raise one ValueError that lists everything a checkpoint has too much, too little, or in another shape or type."""
    missing = {
        "tensors no rule claims": planned.unclaimed,
        "parameters no tensor fills": planned.unfilled,
        "tensors for a parameter filled already": planned.twice_filled,
    }
    named = {**missing, **faults(planned, checkpoint.info)}
    found = [f"{len(names)} {fault}: {brief(names)}" for fault, names in named.items() if names]
    if found:
        raise ValueError(
            f"{checkpoint.folder}: the weights do not fit config.json; {'; '.join(found)}; "
            "download both again from one place"
        )


def faults(planned: Plan, info: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """What is wrong with the tensors that fill something -> which they are; empty lists where nothing is."""
    wanted = planned.assignments
    return {
        MISSHAPEN: [
            f"{tensor} is {list(info[tensor].shape)}, the config needs {list(_stored_shape(planned, tensor))}"
            for tensor in misshapen(planned, info)
        ],
        **schemes.faults(planned.scales, {tensor: to.stored_shape for tensor, to in wanted.items()}, info),
        "tensors of a type that no plain checkpoint has (is it quantised?)": [
            f"{tensor} is {info[tensor].dtype}"
            for tensor in wanted
            if info[tensor].dtype not in DTYPES and tensor not in planned.scales
        ],
    }


def misshapen(planned: Plan, info: Mapping[str, TensorInfo]) -> list[str]:
    """The tensors whose shape is not that of the rows they would fill."""
    return [tensor for tensor in planned.assignments if info[tensor].shape != _stored_shape(planned, tensor)]


def _stored_shape(planned: Plan, tensor: str) -> tuple[int, ...]:
    plain, scale = planned.assignments[tensor].stored_shape, planned.scales.get(tensor)
    return plain if scale is None else schemes.scheme_of(scale).stored_shape(plain)


def fully_fp8(planned: Plan) -> list[str]:
    """The parameters that only fp8 tensors fill, row by row: a factor of 128 columns cannot follow them elsewhere."""
    stored = {tensor for tensor, scale in planned.scales.items() if schemes.scheme_of(scale) is fp8}
    mixed = {to.parameter for tensor, to in planned.assignments.items() if tensor not in stored or to.layout}
    return [name for name in dict.fromkeys(to.parameter for to in planned.assignments.values()) if name not in mixed]


def load(
    checkpoint: Checkpoint,
    planned: Plan,
    skeleton: Mapping[str, Tensor],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Fill parameters like those of `skeleton`, name -> tensor whose shape and dtype count, on `device`.

    Quantised tensors are dequantised, unless the parameter itself is fp8: then its factors fill the one called
    "…_scale".
    `progress(done, total)` is called with bytes of the files. `check` the plan first.
    """
    parameters: dict[str, Tensor] = {}
    read = 0

    def done(nbytes: int) -> None:
        nonlocal read
        read += nbytes
        progress(read, checkpoint.nbytes)

    def place(name: str, to: Destination, tensor: Tensor) -> None:
        if name not in parameters:
            parameters[name] = torch.empty_like(skeleton[name], device=device)
        if to.layout is None:
            rows(parameters[name], to).copy_(tensor)
        else:
            to.layout.copy(tensor, rows(parameters[name], to))

    wanted = set(planned.scales.values())
    scales = dict(checkpoint.read(wanted.__contains__, done))
    for name, tensor in checkpoint.read(planned.assignments.__contains__, done):
        to = planned.assignments[name]
        if name in planned.scales:
            scale, dtype = scales.pop(planned.scales[name]), skeleton[to.parameter].dtype
            if dtype == fp8.DTYPE:
                place(f"{to.parameter}_scale", to, fp8.row_scales(scale, to.shape[0]))
            else:
                tensor = schemes.scheme_of(planned.scales[name]).dequantise(tensor, scale, dtype)
        place(to.parameter, to, tensor)
    progress(checkpoint.nbytes, checkpoint.nbytes)
    return parameters
