"""The ops of the selective scan on a CPU: the loops of `loops/selective.py`. See `ops/cpu/ops.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.ops import recurrent, selective
from minillm.ops.cpu import loops
from minillm.ops.cpu.arrays import LIKE, address
from minillm.ops.cpu.matrices import here, plain


def selective_scan(
    x: Tensor, z: Tensor, d: Tensor, b: Tensor, c: Tensor, decay: Tensor, skip: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`selective.selective_scan`."""
    typed = [each.contiguous() for each in (x, z, b, c)]
    numbers = [each.contiguous() for each in (d, decay, skip, state)]
    if not (x.numel() and plain(*typed) and numbers[0].dtype == torch.float32 and plain(*numbers)):
        return selective.selective_scan(x, z, d, b, c, decay, skip, state)
    y, made = typed[1].new_empty(z.shape), torch.empty_like(numbers[3])
    _run(typed, numbers, made, None, None, 0, y)
    return y, made


def selective_step(
    x: Tensor, z: Tensor, d: Tensor, b: Tensor, c: Tensor, decay: Tensor, skip: Tensor, state: Tensor,
    position: Tensor, rows: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`selective.selective_step`."""
    typed = [each.contiguous() for each in (x, z, b, c)]
    numbers = [*(each.contiguous() for each in (d, decay, skip)), state]
    fits = numbers[0].dtype == torch.float32 and plain(*numbers) and _placed(position, rows)
    if not (x.numel() and plain(*typed) and fits):
        return selective.selective_step(x, z, d, b, c, decay, skip, state, position, rows)
    y = typed[1].new_empty(z.shape)
    _run(typed, numbers, state, position, rows, state.shape[1], y)
    return y


def short_conv_step(
    new: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor, position: Tensor, rows: Tensor | None = None
) -> Tensor:
    """`recurrent.short_conv_step`."""
    given = new.contiguous()
    if not (new.numel() and plain(given, weight, bias, inputs) and _placed(position, rows)):
        return recurrent.short_conv_step(new, weight, bias, inputs, position, rows)
    (held, slots), (channels, taps), y = inputs.shape[:2], weight.shape, torch.empty_like(given)
    at = tuple(map(address, (given, weight, bias, inputs, position, rows, y)))
    loops.selective.short_conv_step(at, len(new), held, (slots, channels, taps), LIKE[new.dtype])
    return y


def _run(
    typed: list[Tensor], numbers: list[Tensor], made: Tensor, position: Tensor | None, rows: Tensor | None,
    states: int, y: Tensor,
) -> None:  # fmt: skip
    x, z, b, c = typed
    d, decay, skip, state = numbers
    at = tuple(map(address, (x, z, d, b, c, decay, skip, state, made, position, rows, y)))
    sizes = (*x.shape[:2], *decay.shape, states)
    loops.selective.selective(at, len(state), sizes, LIKE[x.dtype])


def _placed(*places: Tensor | None) -> bool:
    """Whether a loop may read positions and rows."""
    return all(each is None or (each.is_contiguous() and here(each)) for each in places)
