"""Problems for the ops of recurrent layers, as `kernel_problems.py` has them for others."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.ops import Ops, recurrent
from tests.helpers.kernel_cases import Case, Errors, exact, ulps


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@torch.no_grad()
def short_conv(case: Case, ops: Ops) -> Errors:
    channels, steps, width = case.size(200), case.size(20), case.size(4)
    x, weight = case.part(2, width - 1 + steps, channels), case.values(channels, width)
    bias = case.values(channels) if case.maybe() else None
    x64, weight64, bias64 = exact(x, weight, bias)
    y = sum(weight64[:, j] * x64[:, j : j + steps] for j in range(width))
    return {"result": ulps(ops.short_conv(x, weight, bias), silu(y if bias64 is None else y + bias64))}


@torch.no_grad()
def gated_rms_norm(case: Case, ops: Ops) -> Errors:
    rows, n = case.size(6), case.size(512)
    x, gate, weight = case.part(2, rows, n), case.part(2, rows, n), case.values(n)
    x64, gate64, weight64 = exact(x, gate, weight)
    normed = x64 * torch.rsqrt(x64.square().mean(-1, keepdim=True) + 1e-2)
    return {"result": ulps(ops.gated_rms_norm(x, gate, weight, 1e-2), weight64 * normed * silu(gate64))}


@torch.no_grad()
def delta_rule(case: Case, ops: Ops) -> Errors:
    batch, steps, heads, group = case.size(2), case.of((1, 2, 65, 130)), case.size(2), case.size(3)
    keys, values = case.size(64, 8), case.size(64)  # of few values all keys are alike, and corrections cancel
    q, k = (case.values(batch, steps, heads, keys) for _ in range(2))
    v, beta = case.values(batch, steps, heads * group, values), case.values(batch, steps, heads * group).sigmoid()
    g = -case.values(batch, steps, heads * group, dtype=torch.float32).abs()
    state = case.values(batch, heads * group, keys, values, dtype=torch.float32)
    o, last = ops.delta_rule(q, k, v, g, beta, state)
    expected, expected_last = in_order(*exact(q, k, v, g, beta, state))
    return {"result": ulps(o, expected), "result of the state": ulps(last, expected_last, dtype=torch.float32)}


@torch.no_grad()
def channel_rule(case: Case, ops: Ops) -> Errors:
    batch, steps, heads = case.size(2), case.of((1, 2, 17, 70)), case.size(4)
    keys, values = case.size(64, 8), case.size(64)
    q, k = (case.values(batch, steps, heads, keys) for _ in range(2))
    v, beta = case.values(batch, steps, heads, values), case.values(batch, steps, heads).sigmoid()
    g = -case.values(batch, steps, heads, keys, dtype=torch.float32).abs()
    state = case.values(batch, heads, keys, values, dtype=torch.float32)
    o, last = ops.channel_rule(q, k, v, g, beta, state)
    *given, reached = exact(q, k, v, g, beta, state)
    parts, terms = [], []
    for t in range(steps):  # an answer of nearly nothing is the sum of terms that are more
        at = [each[:, t : t + 1] for each in given]
        part, reached = in_order(*at, reached)
        parts.append(part)
        asked = at[0][:, 0].abs() / (at[0][:, 0].norm(dim=-1, keepdim=True) * keys**0.5)
        terms.append(torch.einsum("bhkv,bhk->bhv", reached.abs(), asked)[:, None])
    errors = ulps(o, torch.cat(parts, 1), torch.cat(terms, 1))
    return {"result": errors, "result of the state": ulps(last, reached, dtype=torch.float32)}


@torch.no_grad()
def delta_step(case: Case, ops: Ops) -> Errors:
    """Of a layer whose norm does not multiply rounding: an output of nearly nothing would be brought to size 1."""
    batch, keys, values, taps = case.size(2), case.size(64, 8), case.size(64), case.size(4)
    heads, group, states = case.size(2), case.size(3), 1 + case.size(3)
    channels, count, slots = heads * (2 * keys + group * values), heads * group, states + taps - 2
    qkvz, ba = case.values(batch, 1, channels + count * values), case.values(batch, 1, 2 * count)
    conv, norm = case.values(channels, taps), case.values(values)
    decay, step = (case.values(count, dtype=torch.float32) for _ in range(2))
    held = batch + case.below(3)
    rows = case.on(torch.randperm(held, generator=case.generator)[:batch]) if held > batch else None
    inputs = case.values(held, slots, channels)
    state = case.values(held, states, count, keys, values, dtype=torch.float32)
    position = case.integers(1000, batch) + taps
    given = exact(qkvz, ba, conv, decay, step, norm, inputs, state)
    expected = [each.detach() for each in layer(*given, position.cpu(), 1.0, 2.0, rows)]
    y = ops.delta_step(qkvz, ba, conv, decay, step, norm, inputs, state, position, 1.0, 2.0, rows)
    return {
        "result": ulps(y, expected[0], expected[3]),
        "result of the inputs": ulps(inputs, expected[1]),
        "result of the state": ulps(state, expected[2], dtype=case.dtype),
    }


def layer(
    qkvz: Tensor, ba: Tensor, conv: Tensor, decay: Tensor, step: Tensor, norm: Tensor, inputs: Tensor, state: Tensor,
    position: Tensor, eps: float, factor: float, rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """One position of each row: y, both rings, and how large the terms are that y sums."""
    (channels, taps), (_, states, heads, keys, values) = conv.shape, state.shape
    inputs, state, parts = inputs.detach().clone(), state.detach().clone(), []
    terms = []
    places = range(len(position)) if rows is None else rows.tolist()
    for b, (p, row) in enumerate(zip(position.tolist(), places, strict=True)):
        slots = [(p - back) % inputs.shape[1] for back in range(taps)]
        inputs[row, slots[0]] = qkvz[b, 0, :channels]
        mixed = silu(sum(conv[:, taps - 1 - back] * inputs[row, slot] for back, slot in enumerate(slots)))  # type: ignore[arg-type]
        q, k, v = mixed.split(((channels - heads * values) // 2,) * 2 + (heads * values,))
        q, k, v = (each.view(1, 1, -1, size) for each, size in ((q, keys), (k, keys), (v, values)))
        g = -decay.exp() * (1 + (ba[b, 0, heads:] + step).exp()).log()
        beta = factor * ba[b, 0, :heads].sigmoid()
        o, last = in_order(q, k, v, g.view(1, 1, -1), beta.view(1, 1, -1), state[row, (p - 1) % states][None])
        state[row, p % states] = last[0]
        normed = norm * o[0, 0] * torch.rsqrt(o[0, 0].square().mean(-1, keepdim=True) + eps)
        parts.append(normed.flatten() * silu(qkvz[b, 0, channels:]))
        share = q / (q.norm(dim=-1, keepdim=True) * keys**0.5)
        share = share[0, 0].repeat_interleave(heads // q.shape[2], dim=0).abs()
        summed = torch.einsum("hkv,hk->hv", last[0].abs(), share) / o[0, 0].abs()
        terms.append(parts[-1] * summed.flatten())
    return torch.stack(parts)[:, None], inputs, state, torch.stack(terms)


def in_order(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The rule, position by position; g of a head, or of each value of k."""
    source = [h // (v.shape[2] // k.shape[2]) for h in range(v.shape[2])]
    q, k = ((each / (each.square().sum(-1, keepdim=True) + recurrent.EPS).sqrt())[:, :, source] for each in (q, k))
    parts = []
    for t in range(v.shape[1]):
        state = (g[:, t].exp()[..., None] if g.dim() == 4 else g[:, t].exp()[..., None, None]) * state
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
        parts.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) / q.shape[-1] ** 0.5)
    return torch.stack(parts, dim=1), state
