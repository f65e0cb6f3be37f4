"""From a checkpoint's tensors to a model's parameters: plan by name, check every shape, then stream.

Peak memory is the parameters, which are read from their file straight into the rows that they fill, and of what must be
converted or quantised one block more; one tensor, where it must be dequantised or laid out otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from minillm.weights import fp8, holding, ints
from minillm.weights.checkpoint import DTYPES, Checkpoint, Stored, TensorInfo, brief
from minillm.weights.ints import Int4, Int8
from minillm.weights.memory import allocator
from minillm.weights.rules import Destination, Plan, rows
from minillm.weights.tensorfile import NAMES, blocks
from minillm.weights.threads import in_threads

MISSHAPEN = "tensors of another shape"
# Parameters of no more values than SMALL are looked at whole, of others LOOKED_AT in each STRETCH: few enough that one
# thread sums them, as waiting for others would take longer.
SMALL, STRETCH, LOOKED_AT = 2**16, 2**20, 2**13
BLOCK_VALUES = 2**17  # converted or quantised at a time: larger ones are faster and leave more memory unused


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
        adapter = any(".lora_" in name or ".base_layer." in name for name in planned.unclaimed)
        remedy = "merge the adapter first (peft: merge_and_unload)" if adapter else "download both again from one place"
        raise ValueError(f"{checkpoint.folder}: the weights do not fit config.json; {'; '.join(found)}; {remedy}")


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
            if info[tensor].dtype not in ([NAMES[to.dtype]] if to.integer else DTYPES)
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
    formats: Mapping[str, Int8 | Int4] | None = None,
    held: holding.Held | None = None,
) -> dict[str, Tensor]:
    """Fill parameters like those of `skeleton`, name -> tensor whose shape and dtype count, on `device`.

    Those that `formats` names are quantised as they are read, so that no more of them is ever plain than one block of
    rows (one tensor, where it is quantised already or lies otherwise). Quantised tensors are dequantised, unless their
    parameter is in `held`.
    `progress(done, total)` is called with bytes of the files. `check` the plan first.
    """
    parameters: dict[str, Tensor] = {}
    read = 0

    def done(nbytes: int) -> None:
        nonlocal read
        read += nbytes
        progress(read, checkpoint.nbytes)

    allocate = allocator(skeleton.values(), device)

    def allocated(name: str) -> Tensor:
        if name not in parameters:
            parameters[name] = allocate(skeleton[name].shape, skeleton[name].dtype)
        return parameters[name]

    def place(name: str, to: Destination) -> Tensor:
        return rows(allocated(name), to)

    def put(stored: Stored, to: Destination) -> None:
        if held and to.parameter in held:
            holding.fill(held[to.parameter], stored, to, lambda ending: allocated(f"{to.parameter}{ending}"))
        elif formats and to.parameter in formats:
            for start, parts in quantised_rows(formats[to.parameter], stored, to):
                for ending, part in parts.items():
                    place(f"{to.parameter}{ending}", to)[start : start + len(part)] = part
        else:
            fill(place(to.parameter, to), stored, to)

    for name, stored in checkpoint.read(planned.assignments.__contains__, done):
        for one, to in holding.apart(stored, planned.assignments[name]):
            put(one, to)
    _check_values(parameters, skeleton, held or {})
    progress(checkpoint.nbytes, checkpoint.nbytes)
    return parameters


def _check_values(parameters: Mapping[str, Tensor], skeleton: Mapping[str, Tensor], held: holding.Held) -> None:
    """Raise ValueError for values that are no numbers: attention on a CPU may answer as if they were none. A look at
    all would take an eighth of the time of a load, so of large matrices only a share is looked at."""
    for name, values in parameters.items():
        owner = ints.matrix_of(name) or ""
        matrix = None if owner.partition("@")[0] in held else skeleton.get(owner)
        if matrix is not None and matrix.dtype in ints.DTYPES:
            if not ints.sound(name, values):
                raise ValueError(f"{name} has values that no factor has; write the folder again")
        elif values.is_floating_point():
            flat = values.flatten()
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


def quantised_rows(made: Int8 | Int4, stored: Stored, to: Destination) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The rows that a tensor fills as their parts, a block at a time: (number of the first row, parts), in order."""
    columns, whole_rows = to.shape[-1], laid(stored, to)

    def quantise(block: tuple[int, int]) -> tuple[int, dict[str, Tensor]]:
        place = block[0] * columns, block[1] * columns
        values = (stored.values(*place) if whole_rows is None else whole_rows.flatten()[slice(*place)]).float()
        check_finite(to.parameter, values)
        return block[0], made.quantise(values.view(-1, columns))

    return in_threads(quantise, blocks(to.shape[0], max(BLOCK_VALUES // columns, 1)))


def laid(stored: Stored, to: Destination) -> Tensor | None:
    """All rows that a tensor fills, in fp32, where they lie otherwise in it; else None."""
    if to.layout is None:
        return None
    into = torch.empty(to.shape, dtype=torch.float32, device="cpu")
    to.layout.copy(whole(stored), into)
    return into
