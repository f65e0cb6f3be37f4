"""The ops of state spaces in plain PyTorch (Mamba 2, Dao and Gu, arXiv:2405.21060).

From a state S `[N, P]` of a head in fp32 and one position to the next:

    S <- e^a S + B wᵀ,    y = Sᵀ C + D x,    a = -e^A d,    w = d x

`scan` does that to several positions in chunks of C. With G_ij = e^(a_j+1 + … + a_i), what position i has kept of
position j, and G_i, what it has kept of the state S that the chunk begins with, a chunk is attention without softmax
whose scores fade (the dual form), and what earlier chunks have left:

    Y = tril((C Bᵀ) G) W + G C S + D X,    S <- G_C S + Σ_j G_Cj B_j w_jᵀ

Only the last line goes in order. Shapes: B batch, T positions, H heads of P values, G groups of N, which serve H / G
heads side by side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops.recurrent import conv_step

CHUNK = 64


def steps(d: Tensor, shift: Tensor, limits: tuple[float, float | None]) -> Tensor:
    """softplus(d + shift) within limits, fp32: d `[B, T, H]`, shift fp32 `[H]`."""
    return F.softplus(d.float() + shift).clamp(*limits)


def scan(
    x: Tensor, d: Tensor, decay: Tensor, b: Tensor, c: Tensor, skip: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """x `[B, T, H, P]`, d fp32 `[B, T, H]`, decay (A) and skip (D) fp32 `[H]`, b and c `[B, T, G, N]`, state fp32
    `[B, H, N, P]` -> y fp32 `[B, T, H, P]`, and the state behind the last position, a tensor of its own."""
    form = _chunks if x.shape[1] > 1 else _one
    x32, b, c = (each.float().transpose(1, 2) for each in (x, b, c))  # [B, heads, T, values]
    d = d.transpose(1, 2)
    y, state = form(x32 * d.unsqueeze(-1), -decay.exp()[:, None] * d, b, c, state)
    return (y + skip[:, None, None] * x32).transpose(1, 2), state


def _one(w: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position: w `[B, H, 1, P]`, a `[B, H, 1]`, b and c `[B, G, 1, N]`."""
    b, c = (each.transpose(-1, -2).repeat_interleave(w.shape[1] // b.shape[1], dim=1) for each in (b, c))
    state = state * a.exp().unsqueeze(-1) + b * w
    return (state * c).sum(-2, keepdim=True), state


def _chunks(w: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Several: w `[B, H, T, P]`, a `[B, H, T]`, b and c `[B, G, T, N]`."""
    count, heads = w.shape[2], w.shape[1] // b.shape[1]
    missing = -count % CHUNK  # positions that write nothing and are thrown away
    w, b, c = (F.pad(each, (0, 0, 0, missing)).unflatten(2, (-1, CHUNK)) for each in (w, b, c))
    so_far = F.pad(a, (0, missing)).unflatten(2, (-1, CHUNK)).double().cumsum(-1)  # differences of sums: `recurrent.py`
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=w.device).triu(1)
    kept = (so_far.unsqueeze(-1) - so_far.unsqueeze(-2)).float().masked_fill(future, float("-inf")).exp()  # G
    from_start, to_end = (each.float().exp().unsqueeze(-1) for each in (so_far, so_far[..., -1:] - so_far))
    scores = (c @ b.transpose(-1, -2)).repeat_interleave(heads, dim=1)
    inside = (scores * kept) @ w
    b, c = (each.repeat_interleave(heads, dim=1) for each in (b, c))
    asked, written = c * from_start, (b * to_end).transpose(-1, -2) @ w
    parts = []
    for n in range(w.shape[2]):
        parts.append(inside[:, :, n] + asked[:, :, n] @ state)
        state = state * from_start[:, :, n, -1:] + written[:, :, n]
    return torch.cat(parts, dim=2)[:, :, :count], state


def gated_group_norm(y: Tensor, gate: Tensor, weight: Tensor | None, groups: int, eps: float) -> Tensor:
    """w * v / rms(v) of each of the groups of v = y * silu(gate), in fp32 but for the product with the weight, and v
    without one; y fp32 and gate `[..., I]`, weight `[I]` -> y's shape and the gate's dtype."""
    v = y * F.silu(gate.float())
    if weight is None:
        return v.to(gate.dtype)
    parts = v.unflatten(-1, (groups, -1))
    normed = parts * torch.rsqrt(parts.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.flatten(-2).to(gate.dtype)


def state_step(
    zxbcd: Tensor,
    conv: Tensor,
    conv_bias: Tensor | None,
    numbers: tuple[Tensor, Tensor, Tensor],
    norm: Tensor | None,
    inputs: Tensor,
    state: Tensor,
    position: Tensor,
    groups: int,
    limits: tuple[float, float | None],
    eps: float,
    rows: Tensor | None = None,
) -> Tensor:
    """A layer at one position of each row, between its products: the convolution, `steps`, `scan`, `gated_group_norm`.

    zxbcd `[B, 1, H P + C + H]`, conv `[C, J]`, its bias `[C]`, numbers (A, t, D) fp32 `[H]` each, norm `[H P]` ->
    `[B, 1, H P]`. inputs `[B, slots, C]`, state `[B, states, H, N, P]`, position and rows as in `recurrent.delta_step`.
    """
    (_, states, heads, n_size, p_size), channels = state.shape, len(conv)
    rows = torch.arange(len(zxbcd), device=zxbcd.device) if rows is None else rows
    z, new, d = zxbcd.split((heads * p_size, channels, heads), dim=-1)
    mixed = F.silu(conv_step(new, conv, inputs, position, rows, conv_bias))
    x, b, c = mixed.split((heads * p_size, groups * n_size, groups * n_size), dim=-1)
    x, b, c = (each.unflatten(-1, (count, -1)) for each, count in ((x, heads), (b, groups), (c, groups)))
    decay, shift, skip = numbers
    y, made = scan(x, steps(d, shift, limits), decay, b, c, skip, state[rows, (position - 1) % states])
    state[rows, position % states] = made
    return gated_group_norm(y.flatten(2), z, norm, groups, eps)
