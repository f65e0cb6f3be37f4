"""The gradients of attention without the matrix of scores (FlashAttention-2, Dao, arXiv:2307.08691).

With p = softmax(s), s = scale q·k (capped: c tanh(scale q·k / c)), o = Σ p v and g the gradient of o,

    dv_s = Σ_t p_ts g_t          ds_ts = p_ts (g_t·v_s - δ_t),   δ_t = g_t·o_t
    dq_t = scale Σ_s ds_ts k_s   dk_s = scale Σ_t ds_ts q_t      dsink = -Σ_t p_sink,t δ_t

and with a cap ds times 1 - (s / c)². p is computed anew from q, k and the sums that the forward pass kept, 2^(s - lse):
recomputing costs less than reading T² values. One kernel owns a block of keys and goes over the queries of all G heads
that share them (so dk and dv need no atomics), another owns a block of queries and goes over its keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.attention import attention, configs
from minillm.kernels.launch import on_device_of
from minillm.kernels.online_softmax import LOG2_E, load_rows, padded, scored, seen
from minillm.kernels.tuning import LARGE, SMALL, Config, bucket, run

# Queries and keys per block, as in `attention.py`.
CONFIGS = {
    (64, 64): (Config("32x64", (32, 64), 4, 2, LARGE), Config("32x32", (32, 32), 4, 1, SMALL)),
    (128, 128): (
        Config("32x64", (32, 64), 8, 1, LARGE),
        Config("32x32 twice", (32, 32), 8, 2, LARGE),
        Config("32x32", (32, 32), 8, 1, SMALL),
    ),
    (256, 256): (Config("32x32", (32, 32), 8, 1, LARGE), Config("16x16", (16, 16), 4, 1, SMALL)),
}


@triton.jit
def gradients(q, k, v, g, lse, delta, visible, scale, cap, HAS_CAP: tl.constexpr):
    """p and ds of a block, fp32 `[Q, K]`."""
    s = scored(q, k, scale, cap, HAS_CAP)
    p = tl.where(visible, tl.exp2(s - lse[:, None]), 0.0)
    ds = p * (tl.dot(g, tl.trans(v), input_precision="ieee") - delta[:, None])
    if HAS_CAP:
        part = s / (LOG2_E * cap)
        ds = ds * (1.0 - part * part)
    return p, ds


@triton.jit
def key_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, lse_f32_ptr, delta_f32_ptr, first_i64_ptr, dk_ptr, dv_ptr,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, queries, keys, past, first_key, kv_heads, scale, cap,
    HAS_FIRST: tl.constexpr, HAS_CAP: tl.constexpr, WINDOW: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(0) % kv_heads).to(tl.int64)
    block = tl.program_id(1) * BLOCK_K
    first = 0
    if HAS_FIRST:
        first = (tl.load(first_i64_ptr + batch) - first_key).to(tl.int32)
    rows, columns = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K)
    columns_d, columns_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    k = load_rows(k_ptr + batch * k_b + kv_head * k_h, k_t, block, columns, columns_d, keys, D)
    v = load_rows(v_ptr + batch * v_b + kv_head * v_h, v_t, block, columns, columns_v, keys, V)
    dk, dv = tl.zeros((BLOCK_K, BLOCK_D), tl.float32), tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    lowest = tl.maximum(block - past, 0) // BLOCK_Q * BLOCK_Q
    highest = queries
    if WINDOW:
        highest = tl.minimum(queries, block + BLOCK_K - 1 + WINDOW - past)
    for member in range(G):
        head = kv_head * G + member
        q_at, g_at = q_ptr + batch * q_b + head * q_h, g_ptr + batch * g_b + head * g_h
        kept = (batch * kv_heads * G + head) * queries
        for start in range(lowest, highest, BLOCK_Q):
            inside = start + rows < queries
            q = load_rows(q_at, q_t, start, rows, columns_d, queries, D)
            g = load_rows(g_at, g_t, start, rows, columns_v, queries, V)
            lse = tl.load(lse_f32_ptr + kept + start + rows, mask=inside, other=0.0)
            delta = tl.load(delta_f32_ptr + kept + start + rows, mask=inside, other=0.0)
            visible = seen(start + rows + past, block + columns, first, keys, WINDOW) & inside[:, None]
            p, ds = gradients(q, k, v, g, lse, delta, visible, scale, cap, HAS_CAP)
            dv += tl.dot(tl.trans(p.to(g.dtype)), g, input_precision="ieee")
            dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision="ieee")
    at = (tl.program_id(0).to(tl.int64) * keys + block + columns)[:, None]
    inside = (block + columns < keys)[:, None]
    kind = dk_ptr.dtype.element_ty
    tl.store(dk_ptr + at * D + columns_d[None, :], (dk * scale).to(kind), mask=inside & (columns_d < D)[None, :])
    tl.store(dv_ptr + at * V + columns_v[None, :], dv.to(kind), mask=inside & (columns_v < V)[None, :])


@triton.jit
def query_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, lse_f32_ptr, delta_f32_ptr, first_i64_ptr, dq_ptr,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, queries, keys, past, first_key, heads, scale, cap,
    HAS_FIRST: tl.constexpr, HAS_CAP: tl.constexpr, WINDOW: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    block = tl.program_id(1) * BLOCK_Q
    first = 0
    if HAS_FIRST:
        first = (tl.load(first_i64_ptr + batch) - first_key).to(tl.int32)
    rows, columns = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K)
    columns_d, columns_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    inside = block + rows < queries
    q = load_rows(q_ptr + batch * q_b + head * q_h, q_t, block, rows, columns_d, queries, D)
    g = load_rows(g_ptr + batch * g_b + head * g_h, g_t, block, rows, columns_v, queries, V)
    kept = tl.program_id(0).to(tl.int64) * queries + block + rows
    lse = tl.load(lse_f32_ptr + kept, mask=inside, other=0.0)
    delta = tl.load(delta_f32_ptr + kept, mask=inside, other=0.0)
    dq = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    lowest = 0
    if WINDOW:
        lowest = tl.maximum(block + past - WINDOW + 1, 0) // BLOCK_K * BLOCK_K
    for start in range(lowest, tl.minimum(block + BLOCK_Q + past, keys), BLOCK_K):
        k = load_rows(k_ptr + batch * k_b + head // G * k_h, k_t, start, columns, columns_d, keys, D)
        v = load_rows(v_ptr + batch * v_b + head // G * v_h, v_t, start, columns, columns_v, keys, V)
        visible = seen(block + rows + past, start + columns, first, keys, WINDOW) & inside[:, None]
        _, ds = gradients(q, k, v, g, lse, delta, visible, scale, cap, HAS_CAP)
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    mask = inside[:, None] & (columns_d < D)[None, :]
    tl.store(dq_ptr + kept[:, None] * D + columns_d[None, :], (dq * scale).to(dq_ptr.dtype.element_ty), mask=mask)


class Attention(torch.autograd.Function):
    """`attention.attention` with gradients for q, k, v and sinks; returns o alone."""

    @staticmethod
    def forward(ctx, q, k, v, past, window, first, first_key, scale, softcap, sinks):
        o, lse = attention(q, k, v, past, window, first, first_key, scale, softcap, sinks)
        ctx.save_for_backward(q, k, v, o, lse, first, sinks)
        ctx.rest = (k.shape[2] - q.shape[2] if past is None else past, window, first_key, scale, softcap)
        return o

    @staticmethod
    def backward(ctx, g):
        q, k, v, o, lse, first, sinks = ctx.saved_tensors
        past, window, first_key, scale, softcap = ctx.rest
        delta = (g.float() * o.float()).sum(-1).contiguous()
        dq, dk, dv = (torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))
        if g.stride(-1) != 1 or g.shape[2] * g.stride(2) >= 2**31:
            g = g.contiguous()
        if g.numel():
            _launch((q, k, v, g, lse, delta, first), (dq, dk, dv), past, window, first_key, scale, softcap)
        dsinks = None
        if sinks is not None:
            share = torch.exp2(sinks.float()[:, None] * 1.4426950408889634 - lse)
            dsinks = -(share * delta).sum((0, 2)).to(sinks.dtype)
        return dq, dk, dv, None, None, None, None, None, None, dsinks


def _launch(tensors, gradients, past, window, first_key, scale, softcap):
    q, k, v, g, _, _, first = tensors
    (batch, heads, queries, dim), (_, kv_heads, keys, value_dim) = q.shape, v.shape
    strides = [stride for each in (q, k, v, g) for stride in each.stride()[:3]]
    sizes = (queries, keys, past, first_key)
    scores = (dim**-0.5 if scale is None else scale, softcap or 0.0)
    constants = {
        "HAS_FIRST": first is not None, "HAS_CAP": softcap is not None, "WINDOW": window or 0, "G": heads // kv_heads,
        "D": dim, "V": value_dim, "BLOCK_D": padded(dim), "BLOCK_V": padded(value_dim),
    }  # fmt: skip
    dq, dk, dv = gradients

    def launch(config: Config) -> None:
        block_q, block_k = config.blocks
        rest = {**constants, "BLOCK_Q": block_q, "BLOCK_K": block_k, **config.options}
        grid = (batch * kv_heads, triton.cdiv(keys, block_k))
        key_kernel[grid](*tensors, dk, dv, *strides, *sizes, kv_heads, *scores, **rest)
        grid = (batch * heads, triton.cdiv(queries, block_q))
        query_kernel[grid](*tensors, dq, *strides, *sizes, heads, *scores, **rest)

    with on_device_of(q):
        key = (q.dtype, dim, value_dim, bucket(keys), window is not None)
        run("attention_backward", key, configs(CONFIGS, dim, value_dim, q.dtype), q.device, launch, keys, 256)


def differentiable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: int | None = None,
    window: int | None = None,
    first: Tensor | None = None,
    first_key: int = 0,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`attention.attention`, same arguments, with gradients for q, k, v and sinks; returns o `[B, H, T, V]`."""
    return Attention.apply(q, k, v, past, window, first, first_key, scale, softcap, sinks)
