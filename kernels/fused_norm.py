"""Passes over memory made one: a residual sum with the norm behind it, and all that stands between the fused product of
q, k and v and attention.

    add_rms_norm          s = x + residual;  y = rms_norm(s)
    qk_norm_rope_cache    q, k = rope(norm(q)), rope(norm(k));  k and v into the cache

The first reads x and the residual and writes s and y: 4 N values, where a sum and a norm of their own move 5 N in two
launches. The second reads a row of q, k and v once and writes it once, q for attention, k and v where the cache has
their slot: 2 (H + 2K) D values, where norms, rotation and copies move them four to eight times in five launches. In
decoding these are a few kilobytes, and what counts is the launches.

Rounding is that of the separate ops: s, the normed x before its weight (or the product with it), and the result of the
norm are rounded to the type of x before they are used. For inference only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of

LARGEST = 65536  # values of a row that one program holds
MOST_HEADS = 16  # of a token that one program takes


@triton.jit
def weighted(x, w, r, offset, kind: tl.constexpr, BEFORE_WEIGHT: tl.constexpr):
    """x r (offset + w), fp32, rounded as rms_norm rounds it."""
    w = w + offset
    normed = x * r
    if BEFORE_WEIGHT:
        normed, w = normed.to(kind).to(tl.float32), w.to(kind).to(tl.float32)
    return (normed * w).to(kind).to(tl.float32)


@triton.jit
def head_weight(q_w_ptr, k_w_ptr, columns, mask, is_q):
    """The weight of each head's norm: that of q, or that of k; fp32 `[heads, columns]`."""
    w_q = tl.load(q_w_ptr + columns, mask=mask & is_q, other=0.0)
    return tl.where(is_q, w_q, tl.load(k_w_ptr + columns, mask=mask & (is_q == 0), other=0.0)).to(tl.float32)


@triton.jit
def add_kernel(
    x_ptr, residual_ptr, w_ptr, y_ptr, s_ptr, x_stride, residual_stride, n, eps, offset,
    BEFORE_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    s = x + tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
    kind: tl.constexpr = s_ptr.dtype.element_ty
    s = s.to(kind)
    tl.store(s_ptr + row * n + columns, s, mask=inside)
    s = s.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(s * s, axis=0) / n + eps)
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    y = weighted(s, w, r, offset, kind, BEFORE_WEIGHT)
    tl.store(y_ptr + row * n + columns, y.to(kind), mask=inside)


@triton.jit(do_not_specialize=["tokens"])  # they grow from step to step
def heads_kernel(
    x_ptr, q_w_ptr, k_w_ptr, cos_ptr, sin_ptr, slots_i64_ptr, q_ptr, k_ptr, v_ptr,
    x_b, x_t, cos_b, cos_t, slots_b, q_b, q_h, q_t, k_b, k_h, k_s, v_b, v_h, v_s, tokens, heads, kv_heads, eps, offset,
    HAS_NORM: tl.constexpr, BEFORE_WEIGHT: tl.constexpr, INTERLEAVED: tl.constexpr, HALF: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Some heads of one token, of q, k and v as they come."""
    batch, token = (tl.program_id(0) // tokens).to(tl.int64), (tl.program_id(0) % tokens).to(tl.int64)
    head, columns = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    is_q, is_v = head < heads, head >= heads + kv_heads
    known, inside = head < heads + 2 * kv_heads, columns < D
    turns = (columns < 2 * HALF) & known & (is_v == 0)  # the values that turn, each with its partner
    if INTERLEAVED:
        partner, angle, second = columns ^ 1, columns // 2, columns % 2 == 1
    else:
        second = columns >= HALF
        partner, angle = tl.where(second, columns - HALF, columns + HALF), tl.where(second, columns - HALF, columns)
    x_ptr += batch * x_b + token * x_t + head * D
    x = tl.load(x_ptr + columns, mask=known & inside, other=0.0)
    other = tl.load(x_ptr + partner, mask=turns, other=0.0).to(tl.float32)
    kind: tl.constexpr = x_ptr.dtype.element_ty
    y = x.to(tl.float32)
    if HAS_NORM:
        r = 1.0 / tl.sqrt(tl.sum(y * y, axis=1) / D + eps)[:, None]
        w = head_weight(q_w_ptr, k_w_ptr, columns, inside, is_q)
        w_other = head_weight(q_w_ptr, k_w_ptr, partner, turns, is_q)
        y = tl.where(is_v, y, weighted(y, w, r, offset, kind, BEFORE_WEIGHT))
        other = weighted(other, w_other, r, offset, kind, BEFORE_WEIGHT)
    at = batch * cos_b + token * cos_t + angle
    cos = tl.load(cos_ptr + at, mask=turns, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + at, mask=turns, other=0.0).to(tl.float32)
    y = (y * cos + tl.where(second, other, -other) * sin).to(kind)
    slot = tl.load(slots_i64_ptr + batch * slots_b + token)
    tl.store(q_ptr + batch * q_b + head * q_h + token * q_t + columns, y, mask=is_q & inside)
    k_at = k_ptr + batch * k_b + (head - heads) * k_h + slot * k_s
    tl.store(k_at + columns, y, mask=(is_q == 0) & (is_v == 0) & inside)
    v_at = v_ptr + batch * v_b + (head - heads - kv_heads) * v_h + slot * v_s
    tl.store(v_at + columns, y, mask=is_v & known & inside)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: str = "before_weight"
) -> tuple[Tensor, Tensor]:
    """x and residual `[..., N]`, weight `[N]`, all of one type -> (y, s) of x's shape; `cast` as in `rms_norm`. Raises
    ValueError for what does not fit."""
    _refuse_gradients(x, residual, weight)
    if x.shape != residual.shape or weight.shape != x.shape[-1:] or not weight.is_contiguous():
        raise ValueError(f"add_rms_norm: x {list(x.shape)}, residual {list(residual.shape)} and weight "
                         f"{list(weight.shape)} do not fit")  # fmt: skip
    if x.shape[-1] > LARGEST:
        raise ValueError(f"add_rms_norm: rows of {x.shape[-1]} values; the limit is {LARGEST}")
    rows, others, n = x.reshape(-1, x.shape[-1]), residual.reshape(-1, x.shape[-1]), x.shape[-1]
    _same("add_rms_norm", {"x": rows, "residual": others, "weight": weight})
    y, s = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    if x.numel():
        block = triton.next_power_of_2(n)
        with on_device_of(x):
            add_kernel[(len(rows),)](
                rows, others, weight, y, s, rows.stride(0), others.stride(0), n, eps, offset, _before(cast), block,
                num_warps=min(max(block // 256, 1), 16),
            )  # fmt: skip
    return y, s


def qk_norm_rope_cache(
    qkv: Tensor,
    num_heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: str = "half",
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    cast: str = "before_weight",
) -> Tensor:
    """qkv `[B, T, (H + 2K) D]`, caches `[B, K, S, D]`, slots int64 `[B or 1, T]`, cos and sin `[B or 1, T, R / 2]`,
    weights `[D]` of the norms of q and k or None -> q `[B, H, T, D]`; k and v of token t go to slot slots[b, t] of the
    caches. A slot outside the cache cannot be noticed without waiting for the device. Raises ValueError for what does
    not fit."""
    _refuse_gradients(qkv, q_weight, k_weight)
    (batch, tokens, _), (_, kv_heads, _, dim), half = qkv.shape, k_cache.shape, cos.shape[-1]
    norms = [each for each in (q_weight, k_weight) if each is not None]
    _check_heads(qkv, num_heads, k_cache, v_cache, slots, cos, sin, layout, norms)
    cos, sin = cos.contiguous(), sin.contiguous()
    q = torch.empty(batch, num_heads, tokens, dim, dtype=qkv.dtype, device=qkv.device)
    if qkv.numel():
        shared = [0 if len(each) == 1 else each.stride(0) for each in (cos, slots)]
        with on_device_of(qkv):
            count = num_heads + 2 * kv_heads
            block = min(triton.next_power_of_2(count), MOST_HEADS)
            heads_kernel[batch * tokens, triton.cdiv(count, block)](
                qkv, q_weight, k_weight, cos, sin, slots, q, k_cache, v_cache, *qkv.stride()[:2], shared[0],
                cos.stride(1), shared[1], *q.stride()[:3], *k_cache.stride()[:3], *v_cache.stride()[:3], tokens,
                num_heads, kv_heads, eps, offset, HAS_NORM=bool(norms), BEFORE_WEIGHT=_before(cast),
                INTERLEAVED=layout == "interleaved", HALF=half, D=dim, BLOCK=triton.next_power_of_2(dim), HEADS=block,
            )  # fmt: skip
    return q


def _check_heads(qkv, num_heads, k_cache, v_cache, slots, cos, sin, layout, norms):
    (batch, tokens, width), (_, kv_heads, _, dim), half = qkv.shape, k_cache.shape, cos.shape[-1]
    if width != (num_heads + 2 * kv_heads) * dim or k_cache.shape != v_cache.shape or len(k_cache) != batch:
        raise ValueError(f"qk_norm_rope_cache: qkv {list(qkv.shape)} is not of {num_heads} + 2 * {kv_heads} heads of "
                         f"{dim} for caches {list(k_cache.shape)} and {list(v_cache.shape)}")  # fmt: skip
    wide = {batch, 1}
    if cos.shape != sin.shape or len(cos) not in wide or cos.shape[1] != tokens or 2 * half > dim:
        raise ValueError(f"qk_norm_rope_cache: cos {list(cos.shape)} and sin {list(sin.shape)} do not fit {batch} x "
                         f"{tokens} tokens with heads of {dim}")  # fmt: skip
    if slots.dtype != torch.int64 or len(slots) not in wide or slots.shape[1:] != (tokens,) or slots.stride(1) != 1:
        raise ValueError(f"qk_norm_rope_cache: slots are {slots.dtype} {list(slots.shape)}, expected int64 "
                         f"[{batch} or 1, {tokens}]")  # fmt: skip
    if len(norms) == 1 or any(each.shape != (dim,) for each in norms):
        raise ValueError(f"qk_norm_rope_cache: give both norms' weights of [{dim}] or neither")
    if layout not in ("half", "interleaved"):
        raise ValueError(f"qk_norm_rope_cache: layout is {layout!r}, expected 'half' or 'interleaved'")
    _same("qk_norm_rope_cache", {"qkv": qkv, "k_cache": k_cache, "v_cache": v_cache, "cos": cos, "sin": sin}
          | dict(enumerate(norms)))  # fmt: skip


def _before(cast: str) -> bool:
    if cast not in ("before_weight", "after_weight"):
        raise ValueError(f"fused_norm: cast is {cast!r}, expected 'before_weight' or 'after_weight'")
    return cast == "before_weight"


def _refuse_gradients(*tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors):
        raise ValueError("fused_norm: has no gradients; use the separate ops, or torch.no_grad()")


def _same(op: str, tensors: dict) -> None:
    first = next(iter(tensors.values()))
    for name, each in tensors.items():
        if each.dtype != first.dtype or each.device != first.device:
            raise ValueError(f"{op}: {name} is {each.dtype} on {each.device}, expected {first.dtype} on {first.device}")
        if each.stride(-1) != 1 and each.shape[-1] > 1:
            raise ValueError(f"{op}: the last dimension of {name} has stride {each.stride(-1)}, expected 1")
