"""Problems for the ops of state spaces and gated convolutions, as `recurrent_problems.py` has them for others."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.ops import Ops
from tests.helpers.kernel_cases import Case, Errors, exact, ulps
from tests.helpers.recurrent_problems import silu


@torch.no_grad()
def gated_conv_step(case: Case, ops: Ops) -> Errors:
    batch, channels, taps, held = case.size(3), case.size(80), case.size(4), 3 + case.below(3)
    bcu, weight = case.values(batch, 1, 3 * channels), case.values(channels, taps)
    inputs, position = case.values(held, taps + case.below(2), channels), case.integers(1000, batch) + taps
    rows = case.on(torch.randperm(held, generator=case.generator)[:batch])
    b, c, u = bcu[:, 0].chunk(3, dim=-1)
    given, c, weight64, kept = exact(b * u, c, weight, inputs)  # b u is kept as it is rounded
    kept, parts, terms = kept.clone(), [], []
    for i, (p, row) in enumerate(zip(position.tolist(), rows.tolist(), strict=True)):
        slots = [(p - back) % inputs.shape[1] for back in range(taps)]
        kept[row, slots[0]] = given[i]
        each = torch.stack([weight64[:, taps - 1 - back] * kept[row, slot] for back, slot in enumerate(slots)])
        parts.append(c[i] * each.sum(0))
        terms.append((c[i] * each.abs().sum(0)).abs())
    y = ops.gated_conv_step(bcu, weight, inputs, position, rows)
    return {
        "result": ulps(y[:, 0], torch.stack(parts), torch.stack(terms)),
        "result of the inputs": ulps(inputs, kept),
    }


@torch.no_grad()
def state_scan(case: Case, ops: Ops) -> Errors:
    """Behind a state, of x, B and C that lie side by side."""
    batch, count, values, size = case.size(2), case.size(70), case.size(80), case.size(17)
    groups, share = case.size(2), case.size(2)
    heads, inner, part = groups * share, groups * share * values, groups * size
    x, b, c = case.values(batch, count, inner + 2 * part).split((inner, part, part), dim=-1)
    x, b, c = x.unflatten(-1, (heads, -1)), b.unflatten(-1, (groups, -1)), c.unflatten(-1, (groups, -1))
    d = case.values(batch, count, heads, dtype=torch.float32).abs()
    (decay, skip), state = (
        case.values(2, heads, dtype=torch.float32),
        case.values(batch, heads, size, values, dtype=torch.float32),
    )
    wide = [one.detach() for one in exact(x, d, decay, b, c, skip, state)]
    y, made = ops.state_scan(x, d, decay, b, c, skip, state)
    expected, last, terms = in_order(*wide)
    return {"result": ulps(y, expected, terms, case.dtype), "result of the state": ulps(made, last, dtype=case.dtype)}


def in_order(
    x: Tensor, d: Tensor, decay: Tensor, b: Tensor, c: Tensor, skip: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence, position by position: y, the last state, and how large the terms are that y sums."""
    share, y, terms, state = x.shape[2] // b.shape[2], torch.zeros_like(x), torch.zeros_like(x), state.clone()
    for t in range(x.shape[1]):
        for h in range(x.shape[2]):
            kept = torch.exp(-d[:, t, h] * torch.exp(decay[h]))[:, None, None] * state[:, h]
            state[:, h] = kept + d[:, t, h, None, None] * b[:, t, h // share, :, None] * x[:, t, h, None, :]
            read, given = state[:, h] * c[:, t, h // share, :, None], skip[h] * x[:, t, h]
            y[:, t, h], terms[:, t, h] = read.sum(1) + given, read.abs().sum(1) + given.abs()
    return y, state, terms


@torch.no_grad()
def state_step(case: Case, ops: Ops) -> Errors:
    """With a norm that does not multiply rounding, and every other time without one, and without a bias."""
    batch, values, size, taps = case.size(2), case.size(80), case.size(40), case.size(4)
    groups, each, states = case.size(2), case.size(3), 2 + case.below(2)
    heads, held, has = groups * each, batch + case.below(3), case.below(2)
    inner, channels = heads * values, heads * values + 2 * groups * size
    zxbcd, conv = case.values(batch, 1, inner + channels + heads), case.values(channels, taps)
    bias, norm = (case.values(count) if has else None for count in (channels, inner))
    numbers = [case.values(heads, dtype=torch.float32) for _ in range(3)]
    rows = case.on(torch.randperm(held, generator=case.generator)[:batch]) if held > batch else None
    inputs = case.values(held, states + taps - 2, channels)
    state = case.values(held, states, heads, size, values, dtype=torch.float32)
    position, limits = case.integers(1000, batch) + taps, (0.1, 1.0) if has else (0.0, None)
    wide = [None if one is None else exact(one)[0] for one in (zxbcd, conv, bias, *numbers, norm, inputs, state)]
    expected = layer(*wide, position.cpu(), groups, limits, 1.0, rows)
    y = ops.state_step(zxbcd, conv, bias, tuple(numbers), norm, inputs, state, position, groups, limits, 1.0, rows)
    return {
        "result": ulps(y[:, 0], expected[0], expected[3]),
        "result of the inputs": ulps(inputs, expected[1]),
        "result of the state": ulps(state, expected[2], dtype=case.dtype),
    }


def layer(
    zxbcd: Tensor, conv: Tensor, bias: Tensor | None, decay: Tensor, shift: Tensor, skip: Tensor, norm: Tensor | None,
    inputs: Tensor, state: Tensor, position: Tensor, groups: int, limits: tuple[float, float | None], eps: float,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """One position of each row: y, both rings, and how large the terms are that y sums."""
    (channels, taps), (_, states, heads, size, values) = conv.shape, state.shape
    inputs, state, parts, terms = inputs.clone(), state.clone(), [], []
    inner, share = heads * values, heads // groups
    places = range(len(position)) if rows is None else rows.tolist()
    for i, (p, row) in enumerate(zip(position.tolist(), places, strict=True)):
        slots = [(p - back) % inputs.shape[1] for back in range(taps)]
        inputs[row, slots[0]] = zxbcd[i, 0, inner : inner + channels]
        summed = sum(conv[:, taps - 1 - back] * inputs[row, slot] for back, slot in enumerate(slots))
        x, b, c = silu(summed if bias is None else summed + bias).split((inner, groups * size, groups * size))  # type: ignore[arg-type]
        x, b, c = x.view(heads, values), b.view(groups, size), c.view(groups, size)
        d = (1 + (zxbcd[i, 0, inner + channels :] + shift).exp()).log().clamp(*limits)
        y, large = torch.zeros(2, heads, values, dtype=x.dtype, device=x.device)
        for h in range(heads):
            kept = (-d[h] * decay[h].exp()).exp() * state[row, (p - 1) % states, h]
            state[row, p % states, h] = kept + d[h] * torch.outer(b[h // share], x[h])
            y[h] = state[row, p % states, h].T @ c[h // share] + skip[h] * x[h]
            large[h] = state[row, p % states, h].abs().T @ c[h // share].abs() + (skip[h] * x[h]).abs()
        gate = silu(zxbcd[i, 0, :inner])
        v, large = y.flatten() * gate, large.flatten() * gate.abs()
        if norm is not None:
            factor = torch.rsqrt(v.view(groups, -1).square().mean(-1, keepdim=True) + eps)
            factor = norm * factor.expand(groups, inner // groups).flatten()
            v, large = v * factor, large * factor.abs()
        parts.append(v)
        terms.append(large)
    return torch.stack(parts), inputs, state, torch.stack(terms)
