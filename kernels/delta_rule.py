"""The gated delta rule over many positions (Yang et al., arXiv:2412.06464), in chunks of C.

    S <- e^g S;   S <- S + k (beta (v - Sᵀ k))ᵀ;   o = Sᵀ q        for each head, k and q of length 1 and 1 / √K

Position by position that is a chain of T steps which read and write all of S. Inside a chunk the corrections d follow
from one triangular system, whose inverse depends on no state (`minillm/ops/recurrent.py` derives it):

    T = (I + tril(beta (K Kᵀ) G, -1))⁻¹;   U = T (beta V),   W = T (beta K G_i)       all chunks at once
    D = U - W S;   O = (G_i Q) S + tril((Q Kᵀ) G) D;   S <- G_C S + (G_Cj K)ᵀ D           one after the other

So there are two kernels. `solve_kernel` has a program for each chunk of each head: it makes K Kᵀ in registers, inverts
by substitution, row by row, and writes U, W and tril((Q Kᵀ) G). `scan_kernel` has one for each block of columns of each
state, from the first chunk to the last; those columns lie in the result, which is small enough for the nearest cache,
and go through registers in slices. In PyTorch K Kᵀ, G, the system, its right side and every S are written to memory,
and a chunk takes some ten calls.

All products are of full fp32 and not of tensor cores: the state is what is carried on, and no GPU was at hand to see
what else would do. Sums of g are in fp64, for what counts are differences of two of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of
from minillm.kernels.tuning import Config, bucket, run

# Positions of a chunk, columns of a state in a program, rows of it in a step.
CONFIGS = (Config("32x32x32", (32, 32, 32), 4, 1), Config("32x16x32", (32, 16, 32), 4, 1))
EPS = tl.constexpr(1e-6)  # under the root of the sum of squares that q and k are divided by


@triton.jit
def product(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def placed(x_ptr, of_head, position, stride):
    """Where the rows of a head begin, `[C, 1]`."""
    return x_ptr + of_head + position.to(tl.int64)[:, None] * stride


@triton.jit
def slice_of(at, start, there, K: tl.constexpr, DEPTH: tl.constexpr):
    """Some columns of rows, `[C, DEPTH]`, fp32."""
    column = start + tl.arange(0, DEPTH)
    return tl.load(at + column[None, :], mask=there[:, None] & (column < K)[None, :], other=0.0).to(tl.float32)


@triton.jit
def length_factor(at, there, C: tl.constexpr, K: tl.constexpr, DEPTH: tl.constexpr):
    """What makes rows of length 1, `[C, 1]`."""
    total = tl.zeros((C,), tl.float32)
    for start in range(0, K, DEPTH):
        x = slice_of(at, start, there, K, DEPTH)
        total += tl.sum(x * x, 1)
    return tl.rsqrt(total + EPS)[:, None]


@triton.jit
def solve_kernel(
    q_ptr, k_ptr, v_ptr, g_f32_ptr, beta_ptr, u_f32_ptr, w_f32_ptr, seen_f32_ptr,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, beta_b, beta_t, steps, heads, share, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    chunk, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    source, order = head // share, tl.arange(0, C)
    position = chunk * C + order
    there = position < steps
    q_at = placed(q_ptr, batch * q_b + source * q_h, position, q_t)
    k_at = placed(k_ptr, batch * k_b + source * k_h, position, k_t)
    q_factor = length_factor(q_at, there, C, K, DEPTH) * scale
    k_factor = length_factor(k_at, there, C, K, DEPTH)
    beta = tl.load(beta_ptr + batch * beta_b + position * beta_t + head, mask=there, other=0.0).to(tl.float32)[:, None]
    g = tl.load(g_f32_ptr + batch * g_b + position * g_t + head, mask=there, other=0.0).to(tl.float64)
    so_far = tl.cumsum(g, 0)
    alike, seen = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    for start in range(0, K, DEPTH):
        k = slice_of(k_at, start, there, K, DEPTH) * k_factor
        alike += product(k, tl.trans(k))
        seen += product(slice_of(q_at, start, there, K, DEPTH) * q_factor, tl.trans(k))
    kept = tl.exp(tl.minimum(so_far[:, None] - so_far[None, :], 0.0).to(tl.float32))  # G, and 1 for what is behind
    seen = tl.where(order[:, None] >= order[None, :], seen * kept, 0.0)

    inverse = tl.where(order[:, None] > order[None, :], -beta * alike * kept, 0.0)
    for i in range(1, C):
        this = (order == i)[:, None]
        row = tl.sum(tl.where(this, inverse, 0.0), 0)
        row += tl.sum(row[:, None] * inverse, 0)
        inverse = tl.where(this, row[None, :], inverse)
    inverse += tl.where(order[:, None] == order[None, :], 1.0, 0.0)

    at = ((batch * heads + head) * tl.num_programs(0) + chunk) * C + order  # of what is written: chunks are whole there
    tl.store(seen_f32_ptr + at[:, None] * C + order[None, :], seen)
    right = beta * k_factor * tl.exp(so_far.to(tl.float32))[:, None]
    for start in range(0, K, DEPTH):
        column = start + tl.arange(0, DEPTH)
        w = product(inverse, slice_of(k_at, start, there, K, DEPTH) * right)
        tl.store(w_f32_ptr + at[:, None] * K + column[None, :], w, mask=(column < K)[None, :])
    v_at = placed(v_ptr, batch * v_b + head * v_h, position, v_t)
    for start in range(0, V, TILE):
        column = start + tl.arange(0, TILE)
        u = product(inverse, slice_of(v_at, start, there, V, TILE) * beta)
        tl.store(u_f32_ptr + at[:, None] * V + column[None, :], u, mask=(column < V)[None, :])


@triton.jit
def scan_kernel(
    q_ptr, k_ptr, g_f32_ptr, u_f32_ptr, w_f32_ptr, seen_f32_ptr, state_f32_ptr, last_f32_ptr, o_ptr,
    q_b, q_t, q_h, k_b, k_t, k_h, g_b, g_t, state_b, state_h, steps, heads, share, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    source, order, depth = head // share, tl.arange(0, C), tl.arange(0, DEPTH)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    in_v, place = (column < V)[None, :], depth[:, None] * V + column[None, :]
    last_at = last_f32_ptr + (batch * heads + head) * (K * V) + place
    for start in range(0, K, DEPTH):
        inside = (start + depth < K)[:, None] & in_v
        first = tl.load(state_f32_ptr + batch * state_b + head * state_h + start * V + place, mask=inside, other=0.0)
        tl.store(last_at + start * V, first, mask=inside)
    chunks = tl.cdiv(steps, C)
    for chunk in range(chunks):
        position = chunk * C + order
        there = position < steps
        at = ((batch * heads + head) * chunks + chunk) * C + order
        q_at = placed(q_ptr, batch * q_b + source * q_h, position, q_t)
        k_at = placed(k_ptr, batch * k_b + source * k_h, position, k_t)
        g = tl.load(g_f32_ptr + batch * g_b + position * g_t + head, mask=there, other=0.0).to(tl.float64)
        so_far, total = tl.cumsum(g, 0), tl.sum(g, 0)
        asked = length_factor(q_at, there, C, K, DEPTH) * scale * tl.exp(so_far.to(tl.float32))[:, None]
        d = tl.load(u_f32_ptr + at[:, None] * V + column[None, :], mask=in_v, other=0.0)
        o = tl.zeros((C, TILE), tl.float32)
        tl.debug_barrier()  # the state lies in memory, and its slices are read by other threads than wrote them
        for start in range(0, K, DEPTH):
            in_k = start + depth < K
            state = tl.load(last_at + start * V, mask=in_k[:, None] & in_v, other=0.0)
            w = tl.load(w_f32_ptr + at[:, None] * K + start + depth[None, :], mask=in_k[None, :], other=0.0)
            d -= product(w, state)
            o += product(slice_of(q_at, start, there, K, DEPTH) * asked, state)
        o += product(tl.load(seen_f32_ptr + at[:, None] * C + order[None, :]), d)
        o_at = o_ptr + ((batch * steps + position.to(tl.int64)) * heads + head)[:, None] * V + column[None, :]
        tl.store(o_at, o.to(o_ptr.dtype.element_ty), mask=there[:, None] & in_v)
        written = length_factor(k_at, there, C, K, DEPTH) * tl.exp((total - so_far).to(tl.float32))[:, None]
        tl.debug_barrier()
        for start in range(0, K, DEPTH):
            inside = (start + depth < K)[:, None] & in_v
            state = tl.load(last_at + start * V, mask=inside, other=0.0) * tl.exp(total.to(tl.float32))
            state += product(tl.trans(slice_of(k_at, start, there, K, DEPTH) * written), d)
            tl.store(last_at + start * V, state, mask=inside)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """q and k `[B, T, H', K]`, H' dividing H, v `[B, T, H, V]`, g fp32 and beta `[B, T, H]`, state fp32 `[B, H, K, V]`
    -> o `[B, T, H, V]` in v's dtype, and the state behind the last position.

    Raises ValueError for what does not fit or has a strided last dimension.
    """
    _check(q, k, v, g, beta, state)
    (batch, steps, heads, values), keys = v.shape, k.shape[3]
    o, last = (
        torch.empty(v.shape, dtype=v.dtype, device=v.device),
        torch.empty(batch, heads, keys, values, dtype=torch.float32, device=v.device),
    )
    if not v.numel():
        return o, state.clone()
    share, scale = heads // k.shape[2], keys**-0.5
    sizes = {"K": keys, "V": values}

    def launch(config: Config) -> None:
        size, tile, depth = config.blocks
        chunks = triton.cdiv(steps, size)
        u, w, seen = (
            torch.empty(batch, heads, chunks * size, width, dtype=torch.float32, device=v.device)
            for width in (values, keys, size)
        )
        more = {**sizes, "C": size, "TILE": tile, "DEPTH": depth, **config.options}
        solve_kernel[chunks, heads, batch](
            q, k, v, g, beta, u, w, seen, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *g.stride()[:2],
            *beta.stride()[:2], steps, heads, share, scale, **more,
        )  # fmt: skip
        scan_kernel[triton.cdiv(values, tile), heads, batch](
            q, k, g, u, w, seen, state, last, o, *q.stride()[:3], *k.stride()[:3], *g.stride()[:2], *state.stride()[:2],
            steps, heads, share, scale, **more,
        )  # fmt: skip

    with on_device_of(v):
        run("delta_rule", (v.dtype, keys, values, heads, bucket(batch)), CONFIGS, v.device, launch, steps, 256)
    return o, last


def _check(q, k, v, g, beta, state):
    (batch, steps, heads, values), (k_heads, keys) = v.shape, k.shape[2:]
    given = [list(each.shape) for each in (q, k, g, beta, state)]
    of_key, of_head = [batch, steps, k_heads, keys], [batch, steps, heads]
    if given != [of_key, of_key, of_head, of_head, [batch, heads, keys, values]] or heads % k_heads:
        raise ValueError(f"delta_rule: {given} do not fit v {list(v.shape)}")
    if any(each.stride(-1) != 1 for each in (q, k, v, g, beta, state)) or state.stride(2) != values:
        raise ValueError("delta_rule: the last dimension of all, and each state, must be contiguous")
    if g.dtype != torch.float32 or state.dtype != torch.float32:
        raise ValueError(f"delta_rule: g is {g.dtype} and state {state.dtype}, expected fp32")
