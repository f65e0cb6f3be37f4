"""The ops of selective state spaces in plain PyTorch (Mamba, Gu and Dao, arXiv:2312.00752).

From a state S `[N, I]` in fp32 and one position to the next, for each channel i and each n:

    S_ni <- e^(-d_i e^A_ni) S_ni + d_i x_i B_n,    y_i = (Σ_n S_ni C_n + D_i x_i) silu(z_i)

Each channel and n decays at its own rate, so unlike Mamba 2 there is no form in matrix products for many positions at
once: they are scanned in order. What does not depend on the state is computed for chunks of positions.

Shapes: B batch, T positions, I channels, N values of a channel's state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def selective_scan(
    x: Tensor, z: Tensor, d: Tensor, b: Tensor, c: Tensor, decay: Tensor, skip: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """x and z `[B, T, I]`, d fp32 `[B, T, I]`, b and c `[B, T, N]`, decay (A) fp32 `[N, I]`, skip (D) fp32 `[I]`, state
    fp32 `[B, 1, N, I]` -> y `[B, T, I]` in z's dtype, and the state behind the last position, a tensor of its own."""
    x32, rate, now, found = x.float(), -decay.exp(), state[:, 0], []
    for first in range(0, x.shape[1], CHUNK):
        some = slice(first, first + CHUNK)
        kept = (d[:, some, None] * rate).exp()
        written = (d[:, some] * x32[:, some]).unsqueeze(2) * b[:, some, :, None].float()
        states = []
        for t in range(kept.shape[1]):
            now = torch.addcmul(written[:, t], kept[:, t], now)
            states.append(now)
        found.append((torch.stack(states, dim=1) * c[:, some, :, None].float()).sum(2))
    y = torch.cat(found, dim=1) + skip * x32
    return (y * F.silu(z.float())).to(z.dtype), now.unsqueeze(1)


def selective_step(
    x: Tensor,
    z: Tensor,
    d: Tensor,
    b: Tensor,
    c: Tensor,
    decay: Tensor,
    skip: Tensor,
    state: Tensor,
    position: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """`selective_scan` at one position of each row, `[B, 1, I]`: state `[B, states, 1, N, I]`, position and rows as in
    `recurrent.delta_step`."""
    states = state.shape[1]
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    y, made = selective_scan(x, z, d, b, c, decay, skip, state[rows, (position - 1) % states])
    state[rows, position % states] = made
    return y
