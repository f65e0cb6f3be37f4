"""The gated delta rule over many positions (Yang et al., arXiv:2412.06464), in chunks of C.

    S <- e^g S;   S <- S + k (beta (v - Sᵀ k))ᵀ;   o = Sᵀ q        for each head, k and q of length 1 and 1 / √K

Position by position that is a chain of T steps which read and write all of S. Inside a chunk the corrections d follow
from one triangular system, whose inverse depends on no state (`minillm/ops/recurrent.py` derives it):

    T = (I + tril(beta (K Kᵀ) G, -1))⁻¹;   U = T (beta V),   W = T (beta K G_i)       all chunks at once
    D = U - W S;   O = (G_i Q) S + tril((Q Kᵀ) G) D;   S <- G_C S + (G_Cj K)ᵀ D           one after the other

So there are two kernels. `solve_kernel` has a program for each chunk of each head: it makes K Kᵀ in registers, inverts
by substitution, row by row, and writes U, W and tril((Q Kᵀ) G). `scan_kernel` has one for each block of columns of each
state, which stays in registers from the first chunk to the last. In PyTorch K Kᵀ, G, the system, the right side and
every S go through memory, and a chunk takes some ten calls.

All products are of full fp32 and not of tensor cores: the state is what is carried on, and no GPU was at hand to see
what else would do. Sums of g are in fp64, for what counts are differences of two of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of
from minillm.kernels.online_softmax import padded
from minillm.kernels.tuning import Config, bucket, run

# Positions of a chunk, columns of a state in a program.
CONFIGS = (Config("32x32", (32, 32), 8, 1), Config("32x16", (32, 16), 4, 1))
EPS = tl.constexpr(1e-6)  # under the root of the sum of squares that q and k are divided by


@triton.jit
def product(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def unit(at, inside, scale):
    """Rows `[C, K]` of this length, fp32."""
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    return x * (tl.rsqrt(tl.sum(x * x, 1) + EPS) * scale)[:, None]


@triton.jit
def seen_of(so_far, C: tl.constexpr):
    """G_ij, what position i has kept of position j, 0 for those behind it."""
    order = tl.arange(0, C)
    kept = tl.exp((so_far[:, None] - so_far[None, :]).to(tl.float32))
    return tl.where(order[:, None] >= order[None, :], kept, 0.0)


@triton.jit
def solve_kernel(
    q_ptr, k_ptr, v_ptr, g_f32_ptr, beta_ptr, u_f32_ptr, w_f32_ptr, seen_f32_ptr,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, beta_b, beta_t, steps, heads, share, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    chunk, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    source, order = head // share, tl.arange(0, C)
    position = chunk * C + order
    there, column_k = position < steps, tl.arange(0, BLOCK_K)
    inside = there[:, None] & (column_k < K)[None, :]
    k_at = k_ptr + batch * k_b + position.to(tl.int64)[:, None] * k_t + source * k_h + column_k[None, :]
    k = unit(k_at, inside, 1.0)
    beta = tl.load(beta_ptr + batch * beta_b + position * beta_t + head, mask=there, other=0.0).to(tl.float32)
    g = tl.load(g_f32_ptr + batch * g_b + position * g_t + head, mask=there, other=0.0).to(tl.float64)
    so_far = tl.cumsum(g, 0)
    kept = seen_of(so_far, C)

    below = order[:, None] > order[None, :]
    inverse = tl.where(below, -beta[:, None] * product(k, tl.trans(k)) * kept, 0.0)
    for i in range(1, C):
        this = (order == i)[:, None]
        row = tl.sum(tl.where(this, inverse, 0.0), 0)
        row += tl.sum(row[:, None] * inverse, 0)
        inverse = tl.where(this, row[None, :], inverse)
    inverse += tl.where(order[:, None] == order[None, :], 1.0, 0.0)

    at = ((batch * heads + head) * tl.num_programs(0) + chunk) * C + order  # of what is written: chunks are whole there
    w = product(inverse, k * (beta * tl.exp(so_far.to(tl.float32)))[:, None])
    tl.store(w_f32_ptr + at[:, None] * K + column_k[None, :], w, mask=(column_k < K)[None, :])
    for start in tl.static_range(0, V, TILE):
        column = start + tl.arange(0, TILE)
        v_at = v_ptr + batch * v_b + position.to(tl.int64)[:, None] * v_t + head * v_h + column[None, :]
        v = tl.load(v_at, mask=there[:, None] & (column < V)[None, :], other=0.0).to(tl.float32)
        u = product(inverse, v * beta[:, None])
        tl.store(u_f32_ptr + at[:, None] * V + column[None, :], u, mask=(column < V)[None, :])
    q_at = q_ptr + batch * q_b + position.to(tl.int64)[:, None] * q_t + source * q_h + column_k[None, :]
    seen = product(unit(q_at, inside, scale), tl.trans(k)) * kept
    tl.store(seen_f32_ptr + at[:, None] * C + order[None, :], seen)


@triton.jit
def scan_kernel(
    q_ptr, k_ptr, g_f32_ptr, u_f32_ptr, w_f32_ptr, seen_f32_ptr, state_f32_ptr, last_f32_ptr, o_ptr,
    q_b, q_t, q_h, k_b, k_t, k_h, g_b, g_t, state_b, state_h, steps, heads, share, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    source, order, column_k = head // share, tl.arange(0, C), tl.arange(0, BLOCK_K)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    in_k, in_v = column_k < K, (column < V)[None, :]
    place = column_k[:, None] * V + column[None, :]
    state = tl.load(state_f32_ptr + batch * state_b + head * state_h + place, mask=in_k[:, None] & in_v, other=0.0)
    chunks = tl.cdiv(steps, C)
    for chunk in range(chunks):
        position = chunk * C + order
        there = position < steps
        inside = there[:, None] & in_k[None, :]
        at = ((batch * heads + head) * chunks + chunk) * C + order
        w = tl.load(w_f32_ptr + at[:, None] * K + column_k[None, :], mask=in_k[None, :], other=0.0)
        u = tl.load(u_f32_ptr + at[:, None] * V + column[None, :], mask=in_v, other=0.0)
        d = u - product(w, state)
        g = tl.load(g_f32_ptr + batch * g_b + position * g_t + head, mask=there, other=0.0).to(tl.float64)
        so_far, total = tl.cumsum(g, 0), tl.sum(g, 0)
        q_at = q_ptr + batch * q_b + position.to(tl.int64)[:, None] * q_t + source * q_h + column_k[None, :]
        o = product(unit(q_at, inside, scale) * tl.exp(so_far.to(tl.float32))[:, None], state)
        seen = tl.load(seen_f32_ptr + at[:, None] * C + order[None, :])
        o += product(seen, d)
        o_at = o_ptr + ((batch * steps + position.to(tl.int64)) * heads + head)[:, None] * V + column[None, :]
        tl.store(o_at, o.to(o_ptr.dtype.element_ty), mask=there[:, None] & in_v)
        k_at = k_ptr + batch * k_b + position.to(tl.int64)[:, None] * k_t + source * k_h + column_k[None, :]
        k = unit(k_at, inside, 1.0) * tl.exp((total - so_far).to(tl.float32))[:, None]
        state = state * tl.exp(total.to(tl.float32)) + product(tl.trans(k), d)
    tl.store(last_f32_ptr + (batch * heads + head) * (K * V) + place, state, mask=in_k[:, None] & in_v)


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
    sizes = {"K": keys, "V": values, "BLOCK_K": padded(keys)}

    def launch(config: Config) -> None:
        size, tile = config.blocks
        chunks = triton.cdiv(steps, size)
        u, w, seen = (
            torch.empty(batch, heads, chunks * size, width, dtype=torch.float32, device=v.device)
            for width in (values, keys, size)
        )
        more = {**sizes, "C": size, "TILE": tile, **config.options}
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
