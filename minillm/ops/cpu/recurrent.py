"""The ops of recurrent layers on a CPU: the loops of `loops/recurrent.py`. See `ops/cpu/ops.py`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minillm.ops import recurrent, state_space
from minillm.ops.cpu import loops
from minillm.ops.cpu.arrays import LIKE, address
from minillm.ops.cpu.matrices import here, plain


def short_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`recurrent.short_conv`."""
    x = x.contiguous()
    if not plain(x, weight, bias):
        return recurrent.short_conv(x, weight, bias)
    batch, (channels, taps) = len(x), weight.shape
    steps = x.shape[1] - taps + 1
    y = x.new_empty(batch, steps, channels)
    if y.numel():
        at = tuple(map(address, (x, weight, bias, y)))
        loops.recurrent.short_conv(at, batch, steps, channels, taps, LIKE[x.dtype])
    return y


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`recurrent.gated_rms_norm`."""
    x = x.contiguous()
    if not (x.numel() and x.dim() > 2 and gate.stride(-1) == 1 and plain(x, weight) and _alike(gate, x)):
        return recurrent.gated_rms_norm(x, gate, weight, eps)
    heads, size = x.shape[-2:]
    gate, y = gate.flatten(0, -3), torch.empty_like(x)
    at = tuple(map(address, (x, gate, weight, y)))
    sizes = (len(gate), heads, size, gate.stride(0), gate.stride(1))
    loops.recurrent.gated_rms_norm(at, sizes, np.float32(eps), LIKE[x.dtype])
    return y


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`recurrent.delta_rule`."""
    strides = [_positions_apart(each) for each in (q, k, v)]
    given, fp32 = [each.contiguous() for each in (beta, state, g)], g.dtype == state.dtype == torch.float32
    alike = all(_alike(each, beta) for each in (q, k, v))
    if not (all(strides) and v.numel() and alike and fp32 and plain(given[0]) and plain(*given[1:])):
        return recurrent.delta_rule(q, k, v, g, beta, state)
    batch, steps, heads, v_size = v.shape
    beta, state, g = given
    o, last = v.new_empty(v.shape), torch.empty_like(state)
    at = tuple(map(address, (q, k, v, g, beta, state, o, last)))
    sizes = (batch, steps, k.shape[2], heads, k.shape[3], v_size, *strides)
    loops.delta.delta_rule(at, sizes, LIKE[v.dtype])
    return o, last


def channel_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`recurrent.channel_rule`."""
    strides = [_positions_apart(each) for each in (q, k, v)]
    given, fp32 = [each.contiguous() for each in (beta, state, g)], g.dtype == state.dtype == torch.float32
    alike = all(_alike(each, beta) for each in (q, k, v))
    if not (all(strides) and v.numel() and alike and fp32 and plain(given[0]) and plain(*given[1:])):
        return recurrent.channel_rule(q, k, v, g, beta, state)
    beta, state, g = given
    o, last = v.new_empty(v.shape), torch.empty_like(state)
    at = tuple(map(address, (q, k, v, g, beta, state, o, last)))
    loops.channels.channel_rule(at, (*v.shape[:3], k.shape[3], v.shape[3], *strides), LIKE[v.dtype])
    return o, last


def delta_step(
    qkvz: Tensor, ba: Tensor, conv: Tensor, decay: Tensor, step: Tensor, norm: Tensor, inputs: Tensor, state: Tensor,
    position: Tensor, eps: float, factor: float = 1.0, rows: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`recurrent.delta_step`."""
    numbers = decay, step, state
    places = [each for each in (position, rows) if each is not None]
    kept = all(each.is_contiguous() and here(each) for each in places) and decay.dtype == torch.float32
    if not (qkvz.numel() and plain(qkvz, ba, conv, norm, inputs) and plain(*numbers) and kept):
        return recurrent.delta_step(qkvz, ba, conv, decay, step, norm, inputs, state, position, eps, factor, rows)
    batch, (held, states, heads, k_size, v_size) = len(qkvz), state.shape
    channels, taps = conv.shape
    y = qkvz.new_empty(batch, 1, heads * v_size)
    at = tuple(map(address, (qkvz, ba, conv, decay, step, norm, inputs, state, position, rows, y)))
    k_heads = (channels - heads * v_size) // (2 * k_size)
    sizes = (k_heads, heads, k_size, v_size, taps, inputs.shape[1], states)
    loops.recurrent.delta_step(at, batch, held, sizes, np.float32(eps), np.float32(factor), LIKE[qkvz.dtype])
    return y


def state_scan(
    x: Tensor, d: Tensor, decay: Tensor, b: Tensor, c: Tensor, skip: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`state_space.scan`."""
    apart, numbers = _positions_apart(x), (d, decay, skip, state)
    fp32 = all(each.dtype == torch.float32 for each in numbers)
    alike = all(_alike(each, x) for each in (x, b, c)) and x.dtype in LIKE
    if not (apart and x.numel() and alike and fp32 and plain(*numbers)):
        return state_space.scan(x, d, decay, b, c, skip, state)
    (batch, steps, heads, p_size), (groups, n_size) = x.shape, b.shape[2:]
    wide = [each.float().contiguous() for each in (b, c)]  # each is read by many heads
    y, last = state.new_empty(x.shape), torch.empty_like(state)
    at = tuple(map(address, (x, d, decay, *wide, skip, state, last, y)))
    loops.state_space.scan(at, (batch, steps, groups, heads, n_size, p_size, apart), LIKE[x.dtype])
    return y, last


def state_step(
    zxbcd: Tensor, conv: Tensor, bias: Tensor | None, numbers: tuple[Tensor, Tensor, Tensor], norm: Tensor | None,
    inputs: Tensor, state: Tensor, position: Tensor, groups: int, limits: tuple[float, float | None], eps: float,
    rows: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`state_space.state_step`."""
    places = [each for each in (position, rows) if each is not None]
    kept = all(each.is_contiguous() and here(each) for each in places) and state.dtype == numbers[0].dtype
    alike = state.dtype == torch.float32 and plain(zxbcd, conv, bias, norm, inputs) and plain(*numbers, state)
    if not (zxbcd.numel() and kept and alike):
        given = zxbcd, conv, bias, numbers, norm, inputs, state, position, groups, limits, eps, rows
        return state_space.state_step(*given)
    batch, (held, states, heads, n_size, p_size) = len(zxbcd), state.shape
    y = zxbcd.new_empty(batch, 1, heads * p_size)
    at = tuple(map(address, (zxbcd, conv, bias, *numbers, norm, inputs, state, position, rows, y)))
    sizes = (groups, heads, n_size, p_size, conv.shape[1], inputs.shape[1], states)
    ends = np.float32(limits[0]), np.float32(np.inf if limits[1] is None else limits[1])
    loops.state_space.state_step(at, batch, held, sizes, ends, np.float32(eps), LIKE[zxbcd.dtype])
    return y


def gated_conv_step(bcu: Tensor, conv: Tensor, inputs: Tensor, position: Tensor, rows: Tensor | None = None) -> Tensor:
    """`recurrent.gated_conv_step`."""
    places = [each for each in (position, rows) if each is not None]
    kept = all(each.is_contiguous() and here(each) for each in places)
    if not (bcu.numel() and kept and plain(bcu, conv, inputs)):
        return recurrent.gated_conv_step(bcu, conv, inputs, position, rows)
    batch, (channels, taps), (held, slots) = len(bcu), conv.shape, inputs.shape[:2]
    y = bcu.new_empty(batch, 1, channels)
    at = tuple(map(address, (bcu, conv, inputs, position, rows, y)))
    loops.state_space.gated_conv_step(at, batch, held, (channels, taps, slots), LIKE[bcu.dtype])
    return y


def _alike(x: Tensor, other: Tensor) -> bool:
    """Whether a loop may read x, of which rows lie apart, beside another."""
    return x.dtype == other.dtype and here(x) and not (torch.is_grad_enabled() and x.requires_grad)


def _positions_apart(x: Tensor) -> int:
    """How far two positions of `[B, T, H, D]` lie from each other, one number for all rows; 0 where there is none."""
    batch, steps, heads, size = x.shape
    apart = x.stride(1) if steps > 1 else x.stride(0) if batch > 1 else heads * size
    whole = x.stride(3) == 1 and (heads == 1 or x.stride(2) == size)
    return apart if whole and (batch == 1 or x.stride(0) == steps * apart) else 0
