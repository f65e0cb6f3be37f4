"""From a checkpoint's tensors to a model's parameters: plan by name, check every shape, then stream.

Peak memory is the parameters plus one tensor: each tensor is copied from its mapped file straight into the rows that
it fills, on the target device and in the target dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from minillm.weights.checkpoint import DTYPES, Checkpoint, TensorInfo, brief
from minillm.weights.rules import Destination, Plan, Rules, plan

Shapes = Mapping[str, torch.Size]


def check(planned: Plan, checkpoint: Checkpoint) -> None:
    """Raise one ValueError that lists everything a checkpoint has too much, too little, or in another shape or type."""
    info = checkpoint.info
    faults = {
        "tensors no rule claims": planned.unclaimed,
        "parameters no tensor fills": planned.unfilled,
        "tensors for a parameter filled already": planned.twice_filled,
        "tensors of another shape": [
            f"{tensor} is {list(info[tensor].shape)}, the config needs {list(planned.assignments[tensor].shape)}"
            for tensor in misshapen(planned, info)
        ],
        "tensors of a type that no plain checkpoint has (is it quantised?)": [
            f"{tensor} is {info[tensor].dtype}" for tensor in planned.assignments if info[tensor].dtype not in DTYPES
        ],
    }
    found = [f"{len(names)} {fault}: {brief(names)}" for fault, names in faults.items() if names]
    if found:
        raise ValueError(f"{checkpoint.folder}: the weights do not fit config.json; " + "; ".join(found))


def misshapen(planned: Plan, info: Mapping[str, TensorInfo]) -> list[str]:
    """The tensors whose shape is not that of the rows they would fill."""
    return [tensor for tensor, to in planned.assignments.items() if info[tensor].shape != to.shape]


def load(
    checkpoint: Checkpoint,
    rules: Rules,
    destinations: Mapping[str, Destination],
    shapes: Shapes,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Read a checkpoint into parameters of the given `shapes`: name -> tensor of `dtype` on `device`.

    `progress(done, total)` is called with bytes of the files. Raises ValueError where the checkpoint does not fit,
    before any memory is allocated.
    """
    planned = plan(checkpoint.info, rules, destinations)
    check(planned, checkpoint)
    parameters: dict[str, Tensor] = {}
    read = 0

    def done(nbytes: int) -> None:
        nonlocal read
        read += nbytes
        progress(read, checkpoint.nbytes)

    for name, tensor in checkpoint.read(planned.assignments.__contains__, done):
        to = planned.assignments[name]
        if to.parameter not in parameters:
            parameters[to.parameter] = torch.empty(shapes[to.parameter], dtype=dtype, device=device)
        parameters[to.parameter][to.start : to.start + to.shape[0]].copy_(tensor)
    progress(checkpoint.nbytes, checkpoint.nbytes)
    return parameters
