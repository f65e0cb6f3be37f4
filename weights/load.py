"""From a checkpoint's tensors to a model's parameters: plan by name, check every shape, then stream.

Peak memory is the parameters, which are read from their file straight into the rows that they fill, and of what must be
converted or quantised one block more; one tensor, where it must be dequantised or laid out otherwise.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from minillm.weights import fp8, holding
from minillm.weights.checkpoint import DTYPES, Checkpoint, Stored, TensorInfo, brief
from minillm.weights.grouped import Fields
from minillm.weights.ints import Integers
from minillm.weights.memory import GivingBack, allocator
from minillm.weights.rules import Destination, Plan, rows
from minillm.weights.tensorfile import blocks

MISSHAPEN = "tensors of another shape"
# Parameters of no more values than SMALL are looked at whole, of others LOOKED_AT in each STRETCH: few enough that one
# thread sums them, as waiting for others would take longer.
WHOLE, INTEGERS = ".table", ("I64", "I32", "I16", "U8")  # what a parameter of whole numbers is called, and stored in
SMALL, STRETCH, LOOKED_AT = 2**16, 2**20, 2**13
BLOCK_VALUES = 2**17  # converted or quantised at a time: larger ones are faster and leave more memory unused


def check(planned: Plan, checkpoint: Checkpoint) -> None:
    """Raise one ValueError that lists everything a checkpoint has too much, too little, or in another shape or type."""
    missing = {
        "tensors no rule claims": planned.unclaimed,
        "parameters no tensor fills": planned.unfilled,
        "tensors for a parameter filled already": planned.twice_filled,
    }
    numbers = {"tensors with a number that this family's code does not know": _altered(planned, checkpoint)}
    named = {**missing, **faults(planned, checkpoint.info), **numbers}
    found = [f"{len(names)} {fault}: {brief(names)}" for fault, names in named.items() if names]
    if found:
        adapter = any(".lora_" in name or ".base_layer." in name for name in planned.unclaimed)
        remedy = "merge the adapter first (peft: merge_and_unload)" if adapter else "download both again from one place"
        raise ValueError(f"{checkpoint.folder}: the weights do not fit config.json; {'; '.join(found)}; {remedy}")


def _altered(planned: Plan, checkpoint: Checkpoint) -> list[str]:
    """The tensors that are left out for a number that they are not, as any type of a checkpoint rounds it."""
    found = []
    for tensor, number in planned.constants.items():
        info = checkpoint.info[tensor]
        if math.prod(info.shape) != 1 or info.dtype not in DTYPES:
            found.append(f"{tensor} is {info.dtype} {list(info.shape)}, expected one number, {number:g}")
        elif (value := checkpoint.stored[tensor].fresh().values().item()) not in _rounded(number):
            found.append(f"{tensor} is {value:g}, expected {number:g}")
    return found


def _rounded(number: float) -> set[float]:
    return {torch.tensor(number, dtype=dtype).item() for dtype in DTYPES.values()}


def faults(planned: Plan, info: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """What is wrong with the tensors that fill something -> which they are; empty lists where nothing is."""
    wanted = planned.assignments
    return {
        MISSHAPEN: [
            f"{tensor} is {list(info[tensor].shape)}, the config needs {list(wanted[tensor].stored_shape)}"
            for tensor in misshapen(planned, info)
        ],
        "tensors of a type that no plain checkpoint has (is it quantised?)": [
            f"{tensor} is {info[tensor].dtype}"
            for tensor, to in wanted.items()
            if info[tensor].dtype not in (*DTYPES, *(INTEGERS if to.parameter.endswith(WHOLE) else ()))
        ],
    }


def misshapen(planned: Plan, info: Mapping[str, TensorInfo]) -> list[str]:
    """The tensors whose shape is not that of the rows they would fill."""
    return [tensor for tensor, to in planned.assignments.items() if info[tensor].shape != to.stored_shape]


def load(
    checkpoint: Checkpoint,
    planned: Plan,
    skeleton: Mapping[str, Tensor],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
    formats: Mapping[str, Integers] | None = None,
    held: holding.Held | None = None,
) -> dict[str, Tensor]:
    """Fill parameters like those of `skeleton`, name -> tensor whose shape and dtype count, on `device`.

    Quantised tensors are dequantised, unless their parameter is in `held`. Those that `formats` names, which are held
    too, are quantised as they are read, so that no more of them is ever plain than one block of rows (one tensor, where
    it is quantised already or lies otherwise).
    `progress(done, total)` is called with bytes of the files. `check` the plan first.
    """
    parameters: dict[str, Tensor] = {}
    done = _counted(progress, checkpoint.nbytes)
    allocate, give_back = allocator(skeleton.values(), device), GivingBack()

    def allocated(name: str) -> Tensor:
        if name not in parameters:
            parameters[name] = allocate(skeleton[name].shape, skeleton[name].dtype)
        return parameters[name]

    def put(stored: Stored, to: Destination) -> None:
        name = to.parameter
        if not held or name not in held:
            fill(rows(allocated(name), to), stored, to)
        elif formats and name in formats:
            made = Quantised(formats[name], stored, to)
            holding.fill(held[name], made, made.to, lambda ending: allocated(f"{name}{ending}"))
        else:
            holding.fill(held[name], stored, to, lambda ending: allocated(f"{name}{ending}"))

    for name, stored in checkpoint.read(planned.assignments.__contains__, done):
        for one, to in holding.apart(stored, planned.assignments[name]):
            put(one, to)
        if held and planned.assignments[name].parameter in held:
            give_back(stored.nbytes)
    _fill_with_zeros(planned, allocated)
    _check_values(parameters)
    progress(checkpoint.nbytes, checkpoint.nbytes)
    return parameters


def _counted(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """What is called with the bytes of each part, and tells those of all so far."""
    read = 0

    def done(nbytes: int) -> None:
        nonlocal read
        read += nbytes
        progress(read, total)

    return done


def _fill_with_zeros(planned: Plan, allocated: Callable[[str], Tensor]) -> None:
    """What no tensor fills, and need not."""
    for to in planned.zeros:
        rows(allocated(to.parameter), to).zero_()


def _check_values(parameters: Mapping[str, Tensor]) -> None:
    """Raise ValueError for values that are no numbers: attention on a CPU may answer as if they were none. A look at
    all would take an eighth of the time of a load, so of large matrices only a share is looked at."""
    for name, values in parameters.items():
        if values.is_floating_point():
            flat = values.flatten()
            if name.endswith(".bounds"):  # which may be infinite, but not NaN, which clamping leaves as it is
                flat = flat.clamp(-1, 1)
            for start in range(0, len(flat), LOOKED_AT if len(flat) <= SMALL else STRETCH):
                check_finite(name, flat[start : start + LOOKED_AT])


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError where a value is not a number."""
    if values.dtype == fp8.DTYPE:
        finite = not bool((values.view(torch.uint8) & 127 == 127).any())
    else:  # a sum is the fastest look; it can be too large itself
        finite = bool(values.sum().isfinite()) or all(
            bool(part.isfinite().all()) for part in values.split(BLOCK_VALUES)
        )
    if not finite:
        kind = str(values.dtype).removeprefix("torch.")
        raise ValueError(f"{name}: values that are not finite in {kind}; download them again, or try another dtype")


def whole(stored: Stored) -> Tensor:
    return stored.values().view(stored.shape)


def fill(into: Tensor, stored: Stored, to: Destination) -> None:
    """Read a tensor into the rows that it fills: straight where type and layout agree, else in pieces."""
    if to.layout is not None:
        return to.layout.copy(whole(stored), into)
    if into.dtype == stored.dtype and into.device.type == "cpu" and into.is_contiguous():
        return stored.fill(into)
    flat = into.view(-1)
    for start, stop in blocks(flat.numel(), BLOCK_VALUES):
        flat[start:stop] = stored.values(start, stop)


class Quantised:
    """The rows that a tensor of a checkpoint fills, which become integers as they are asked for; `to` is where they go,
    in the order in which they are given."""

    order = None

    def __init__(self, made: Integers, stored: Stored, to: Destination):
        self.made, self.stored, self.to = made, stored, replace(to, layout=None)
        self._lying, self._lock = to, threading.Lock()
        self._laid: Tensor | None = None

    def fields(self, start: int, stop: int) -> Fields:
        """Rows start … stop - 1 as they go into the form of `made`."""
        columns = self.to.shape[-1]
        if self._lying.layout is None:
            values = self.stored.values(start * columns, stop * columns)
        else:
            with self._lock:
                self._laid = laid(self.stored, self._lying) if self._laid is None else self._laid
                assert self._laid is not None  # as there is a layout
                values = self._laid[start:stop]
        check_finite(self.to.parameter, values := values.float())
        return self.made.quantise(values.view(-1, columns))


def laid(stored: Stored, to: Destination) -> Tensor | None:
    """All rows that a tensor fills, in fp32, where they lie otherwise in it; else None."""
    if to.layout is None:
        return None
    into = torch.empty(to.shape, dtype=torch.float32, device="cpu")
    to.layout.copy(whole(stored), into)
    return into
