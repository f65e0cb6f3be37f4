"""The ops of recurrent layers in plain PyTorch: the gated delta rule, short convolutions, the gated norm.

The rule (Yang et al., arXiv:2412.06464), for each v head, from a state S `[K, V]` in fp32 and one position to the next:

    S <- e^g S,    d = beta (v - Sᵀ k),    S <- S + k dᵀ,    o = Sᵀ q

`delta_rule` does that to a single position, and to more of them in chunks of C. Inside a chunk let G_ij = e^(g_j+1 + …
+ g_i) be what position i has kept of position j, and G_i what it has kept of the state S that the chunk begins with.
All corrections d, the rows of D, follow from each other, d_i = beta_i (v_i - G_i Sᵀ k_i - Σ_j<i G_ij (k_j·k_i) d_j),
which is one triangular system (the WY representation, Yang et al., arXiv:2406.06484):

    (I + tril(beta (K Kᵀ) G, -1)) D = beta (V - G K S)
    O = G Q S + tril((Q Kᵀ) G) D,    S <- G_C S + Σ_j G_Cj k_j d_jᵀ

The right side is linear in S, so the system is solved for all chunks at once and only the last two lines go in order.

Shapes: B batch, T positions, H v heads, N chunks of C positions, K and V values of a head's k and v.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
FEW = 16  # positions of a chunk in which channels differ
EPS = 1e-6  # under the root of the sum of squares that q and k are divided by


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_t = sum over j of w_j x_(t + j) for each channel, plus bias, in fp32: x `[B, J - 1 + T, C]` begins with the
    J - 1 positions before the first, weight `[C, J]`, bias `[C]` -> `[B, T, C]` of x's dtype."""
    taps = weight.shape[1]
    x32, weight32, count = x.float(), weight.float(), x.shape[1] - taps + 1
    total = x32[:, :count] * weight32[:, 0]
    for j in range(1, taps):
        total = total + x32[:, j : j + count] * weight32[:, j]
    return (total if bias is None else total + bias.float()).to(x.dtype)


def conv_step(
    new: Tensor,
    weight: Tensor,
    inputs: Tensor,
    position: Tensor,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`causal_conv` at one position of each row: new `[B, 1, C]` -> `[B, 1, C]`; inputs, position and rows as in
    `delta_step`."""
    return causal_conv(preceded(new, inputs, position, rows, weight.shape[1]), weight, bias)


def preceded(new: Tensor, inputs: Tensor, position: Tensor, rows: Tensor | None, taps: int) -> Tensor:
    """What a convolution of so many taps sees at one position of each row, `[B, taps, C]`: new `[B, 1, C]` behind what
    the ring `inputs` has of it, which is given the new; inputs, position and rows as in `delta_step`."""
    rows = torch.arange(len(new), device=new.device) if rows is None else rows
    back = torch.arange(1 - taps, 0, device=new.device)
    past = inputs[rows[:, None], (position[:, None] + back) % inputs.shape[1]]
    inputs[rows, position % inputs.shape[1]] = new[:, 0]
    return torch.cat((past, new), dim=1)


def added_conv(x: Tensor, weight: Tensor) -> Tensor:
    """x_t + sum over j of w_j x_(t - J + 1 + j), in fp32: x `[B, J - 1 + T, C]` begins with the J - 1 positions before
    the first, weight `[C, J]` -> `[B, T, C]` of x's dtype."""
    x32 = x.float()
    return (x32[:, weight.shape[1] - 1 :] + causal_conv(x32, weight)).to(x.dtype)


def gated_conv_step(
    bcu: Tensor, weight: Tensor, inputs: Tensor, position: Tensor, rows: Tensor | None = None
) -> Tensor:
    """c * conv(b * u) at one position of each row, bcu `[B, 1, 3 C]` -> `[B, 1, C]`; the ring `inputs` has b * u."""
    b, c, u = bcu.chunk(3, dim=-1)
    return c * conv_step(b * u, weight, inputs, position, rows)


def short_conv_step(
    new: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    position: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """silu(`conv_step`)."""
    return F.silu(conv_step(new, weight, inputs, position, rows, bias))


def short_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu(y), y_t = sum over j of w_j x_(t + j) for each channel, plus bias: x `[B, J - 1 + T, C]` begins with the
    J - 1 positions before the first, weight `[C, J]`, bias `[C]` -> `[B, T, C]` of x's dtype."""
    if bias is not None:
        return F.silu(causal_conv(x, weight, bias))
    return F.silu(F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), groups=len(weight))).transpose(1, 2)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """w * x / rms(x) * silu(gate) over the last dimension, in fp32 but for the product with the weight; x and gate
    `[..., N]`, weight `[N]` -> x's shape and dtype."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * normed.to(x.dtype) * F.silu(gate.float())).to(x.dtype)


def gates(ba: Tensor, decay: Tensor, step: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """g, fp32, and beta of the rule, each `[B, T, H]`, of ba `[B, T, 2 H]`; decay and step fp32 `[H]`."""
    b, a = ba.chunk(2, dim=-1)
    beta = b.sigmoid() if factor == 1 else factor * b.sigmoid()
    return -decay.exp() * F.softplus(a.float() + step), beta


def delta_step(
    qkvz: Tensor,
    ba: Tensor,
    conv: Tensor,
    decay: Tensor,
    step: Tensor,
    norm: Tensor,
    inputs: Tensor,
    state: Tensor,
    position: Tensor,
    eps: float,
    factor: float = 1.0,
    rows: Tensor | None = None,
) -> Tensor:
    """A layer at one position of each row, between its products: `short_conv`, `gates`, `delta_rule`, `gated_rms_norm`.

    qkvz `[B, 1, C + H V]`, conv `[C, J]`, norm `[V]`, position int64 `[B]` -> `[B, 1, H V]`. inputs `[B, slots, C]` and
    state `[B, states, H, K, V]` are rings, in which what belongs to a position p lies at p modulo their size: what came
    before is read, and what belongs to this one is written. `rows`, int64 `[B]`, are those of the rings that belong to
    the B given, where not all do.
    """
    (_, states, heads, k_size, v_size), (channels, taps) = state.shape, conv.shape
    rows = torch.arange(len(qkvz), device=qkvz.device) if rows is None else rows
    new, z = qkvz.split((channels, heads * v_size), dim=-1)
    seen = preceded(new, inputs, position, rows, taps)
    keys = (channels - heads * v_size) // 2
    q, k, v = short_conv(seen, conv).split((keys, keys, heads * v_size), dim=-1)
    q, k, v = (x.unflatten(-1, (-1, size)) for x, size in ((q, k_size), (k, k_size), (v, v_size)))
    o, made = delta_rule(q, k, v, *gates(ba, decay, step, factor), state[rows, (position - 1) % states])
    state[rows, position % states] = made
    return gated_rms_norm(o, z.view_as(o), norm, eps).flatten(2)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The gated delta rule over T positions, with q / (|q| sqrt(K)) and k / |k| for q and k, in fp32.

    q and k `[B, T, H', K]`, H' dividing H, v `[B, T, H, V]`, g fp32 and beta `[B, T, H]`, state fp32 `[B, H, K, V]` ->
    o `[B, T, H, V]` in v's dtype, and the state behind the last position, a tensor of its own.
    """
    group = v.shape[2] // k.shape[2]
    q, k = (_unit(each).repeat_interleave(group, dim=1) for each in (q, k))
    v32, beta, g = (each.float().transpose(1, 2) for each in (v, beta, g))
    q = q * q.shape[-1] ** -0.5
    if v.shape[1] > 1:
        o, state = _chunks(q, k, v32, g, beta, state)
    else:
        o, state = _once(q, k, v32, g.exp().unsqueeze(-1), beta, state)
    return o.transpose(1, 2).to(v.dtype), state


def _unit(x: Tensor) -> Tensor:
    """`[B, T, H', K]` -> `[B, H', T, K]` of length 1, in fp32."""
    x = x.transpose(1, 2).float()
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + EPS)


def _once(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position: q and k `[B, H, 1, K]`, v `[B, H, 1, V]`, beta `[B, H, 1]`, `kept` of the state, `[B, H, K or 1,
    1]`."""
    state = state * kept
    d = (v - (state * k.transpose(-1, -2)).sum(-2, keepdim=True)) * beta.unsqueeze(-1)
    state = state + k.transpose(-1, -2) * d
    return (state * q.transpose(-1, -2)).sum(-2, keepdim=True), state


def _chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Several: q and k `[B, H, T, K]`, v `[B, H, T, V]`, g and beta `[B, H, T]`."""
    count = v.shape[2]
    missing = -count % CHUNK  # positions that write nothing and are thrown away
    q, k, v = (F.pad(each, (0, 0, 0, missing)).unflatten(2, (-1, CHUNK)) for each in (q, k, v))
    g, beta = (F.pad(each, (0, missing)).unflatten(2, (-1, CHUNK)) for each in (g, beta))
    so_far = g.double().cumsum(-1)  # a difference of two sums is exact to what it is itself, not to what they are
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=v.device).triu(1)
    kept = (so_far.unsqueeze(-1) - so_far.unsqueeze(-2)).float().masked_fill(future, float("-inf")).exp()  # G
    from_start, to_end = (each.float().exp().unsqueeze(-1) for each in (so_far, so_far[..., -1:] - so_far))
    k_beta = k * beta.unsqueeze(-1)
    right = torch.cat((v * beta.unsqueeze(-1), k_beta * from_start), dim=-1)
    system = k_beta @ k.transpose(-1, -2) * kept
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    own, of_state = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    seen, asked, written = q @ k.transpose(-1, -2) * kept, q * from_start, (k * to_end).transpose(-1, -2)
    total, parts = from_start[..., -1:, :], []
    for n in range(v.shape[2]):
        d = own[:, :, n] - of_state[:, :, n] @ state
        parts.append(asked[:, :, n] @ state + seen[:, :, n] @ d)
        state = state * total[:, :, n] + written[:, :, n] @ d
    return torch.cat(parts, dim=2)[:, :, :count], state


def channel_gates(f: Tensor, decay: Tensor, step: Tensor, bound: float | None) -> Tensor:
    """g of the rule by channel, fp32 `[B, T, H, K]`, of f `[B, T, H K]`; decay fp32 `[H]`, step fp32 `[H K]`. With a
    `bound` below 0 nothing is forgotten faster than that says."""
    y, rate = (f.float() + step).unflatten(-1, (len(decay), -1)), decay.exp().unsqueeze(-1)
    return -rate * F.softplus(y) if bound is None else bound * torch.sigmoid(rate * y)


def opened_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """w * x / rms(x) * sigmoid(gate) over the last dimension, all in fp32; x and gate `[..., N]`, weight `[N]` -> x's
    shape and dtype."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    return (weight.float() * normed * torch.sigmoid(gate.float())).to(x.dtype)


def channel_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`delta_rule` in which each row of a state is forgotten at a rate of its own, S <- diag(e^g) S
    (arXiv:2510.26692), with as many heads of k as of v.

    q, k and g `[B, T, H, K]`, v `[B, T, H, V]`, g fp32, beta `[B, T, H]`, state fp32 `[B, H, K, V]` -> o `[B, T, H, V]`
    in v's dtype, and the state behind the last position, a tensor of its own.
    """
    q, k = _unit(q) * q.shape[-1] ** -0.5, _unit(k)
    v32, beta, g = (each.float().transpose(1, 2) for each in (v, beta, g))
    if v.shape[1] == 1:
        o, state = _once(q, k, v32, g.exp().transpose(-1, -2), beta, state)
    else:
        o, state = _channel_chunks(q, k, v32, g, beta, state)
    return o.transpose(1, 2).to(v.dtype), state


def _channel_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Several positions: q, k and g `[B, H, T, K]`, v `[B, H, T, V]`, beta `[B, H, T]`. What a position has kept of
    another differs by channel: no product of matrices has it, so chunks are short and go one after the other."""
    future = torch.ones(FEW, FEW, dtype=torch.bool, device=v.device).triu(1).unsqueeze(-1)
    parts = []
    for start in range(0, v.shape[2], FEW):
        qs, ks, vs, gs, share = (each[:, :, start : start + FEW] for each in (q, k, v, g, beta.unsqueeze(-1)))
        size = vs.shape[2]
        so_far = gs.double().cumsum(-2)
        apart = (so_far.unsqueeze(-2) - so_far.unsqueeze(-3)).float()
        kept = ks.unsqueeze(-3) * apart.masked_fill(future[:size, :size], float("-inf")).exp()  # of k_j at i, [C, C, K]
        from_start, to_end = so_far.float().exp(), (so_far[..., -1:, :] - so_far).float().exp()
        met, seen = ((kept @ each.unsqueeze(-1)).squeeze(-1) for each in (ks, qs))
        right = share * (vs - (ks * from_start) @ state)
        d = torch.linalg.solve_triangular(share * met, right, upper=False, unitriangular=True)
        parts.append((qs * from_start) @ state + seen @ d)
        total = from_start[..., -1:, :].transpose(-1, -2)
        state = total * state + (ks * to_end).transpose(-1, -2) @ d
    return torch.cat(parts, dim=2), state
