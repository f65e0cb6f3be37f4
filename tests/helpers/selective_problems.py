"""Problems for the ops of selective state spaces, as `state_problems.py` has them for others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minillm.ops import Ops
from tests.helpers.kernel_cases import Case, Errors, exact, ulps
from tests.helpers.recurrent_problems import silu


@torch.no_grad()
def short_conv_step(case: Case, ops: Ops) -> Errors:
    """Every other time without a bias."""
    batch, channels, taps, held = case.size(3), case.size(80), case.size(4), 3 + case.below(3)
    new, weight = case.values(batch, 1, channels), case.values(channels, taps)
    bias = case.values(channels) if case.maybe() else None
    inputs, position = case.values(held, taps + case.below(2), channels), case.integers(1000, batch) + taps
    rows = case.on(torch.randperm(held, generator=case.generator)[:batch])
    given, weight64, bias64, kept = exact(new[:, 0], weight, bias, inputs)
    kept, parts, terms = kept.clone(), [], []
    for i, (p, row) in enumerate(zip(position.tolist(), rows.tolist(), strict=True)):
        slots = [(p - back) % inputs.shape[1] for back in range(taps)]
        kept[row, slots[0]] = given[i]
        each = [weight64[:, taps - 1 - back] * kept[row, slot] for back, slot in enumerate(slots)]
        each += [] if bias64 is None else [bias64]
        parts.append(silu(torch.stack(each).sum(0)))
        terms.append(torch.stack(each).abs().sum(0))
    y = ops.short_conv_step(new, weight, bias, inputs, position, rows)
    return {
        "result": ulps(y[:, 0], torch.stack(parts), torch.stack(terms)),
        "result of the inputs": ulps(inputs, kept),
    }


@torch.no_grad()
def selective_scan(case: Case, ops: Ops) -> Errors:
    batch, count = case.size(2), case.size(70)
    given = problem(case, batch, count)
    state = case.values(batch, 1, *given[-2].shape, dtype=torch.float32)
    y, made = ops.selective_scan(*given, state)
    expected, last, terms = in_order(*exact(*given, state))
    return {"result": ulps(y, expected, terms), "result of the state": ulps(made, last, dtype=case.dtype)}


@torch.no_grad()
def selective_step(case: Case, ops: Ops) -> Errors:
    batch, states = case.size(3), 2 + case.below(2)
    held = batch + case.below(3)
    given, position = problem(case, batch, 1), case.integers(1000, batch) + 1
    rows = case.on(torch.randperm(held, generator=case.generator)[:batch]) if held > batch else None
    state = case.values(held, states, 1, *given[-2].shape, dtype=torch.float32)
    places = torch.arange(batch) if rows is None else rows.cpu()
    kept, at = state.double().cpu(), position.cpu()
    expected, last, terms = in_order(*exact(*given), kept[places, (at - 1) % states])
    kept[places, at % states] = last
    y = ops.selective_step(*given, state, position, rows)
    return {"result": ulps(y, expected, terms), "result of the state": ulps(state, kept, dtype=case.dtype)}


def problem(case: Case, batch: int, count: int) -> list[Tensor]:
    """x, z, d, B, C, A and D."""
    channels, size = case.size(140), case.size(17)
    x, z = (case.part(batch, count, channels) for _ in range(2))
    d = case.values(batch, count, channels, dtype=torch.float32).abs()
    b, c = (case.part(batch, count, size) for _ in range(2))
    decay, skip = case.values(size, channels, dtype=torch.float32), case.values(channels, dtype=torch.float32)
    return [x, z, d, b, c, decay, skip]


def in_order(
    x: Tensor, z: Tensor, d: Tensor, b: Tensor, c: Tensor, decay: Tensor, skip: Tensor, state: Tensor
) -> tuple[Any, Any, Any]:
    """y, the state behind the last position, and how large the terms are that y sums."""
    s, parts, sizes = state[:, 0], [], []
    for t in range(x.shape[1]):
        given = torch.einsum("bi,bi,bn->bni", d[:, t], x[:, t], b[:, t])
        s = torch.exp(-torch.einsum("bi,ni->bni", d[:, t], decay.exp())) * s + given
        gate, own = silu(z[:, t]), skip * x[:, t]
        parts.append((torch.einsum("bni,bn->bi", s, c[:, t]) + own) * gate)
        sizes.append((torch.einsum("bni,bn->bi", s.abs(), c[:, t].abs()) + own.abs()) * gate.abs())
    return torch.stack(parts, dim=1), s.unsqueeze(1), torch.stack(sizes, dim=1)
