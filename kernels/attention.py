"""Attention over many queries without the matrix of scores (FlashAttention-2, Dao, arXiv:2307.08691).

    o_t = Σ_s softmax_s(scale q_t·k_s) v_s          s over the keys that query t may see

Written out, the scores of a prompt of T tokens are T² values per head, written and read several times. Here a program
owns a block of queries of one head and goes over blocks of keys with the running maximum m, the sum l of 2^(score - m)
and the unnormalised output in registers; when m grows, both are scaled down (online softmax, Milakov & Gimelshein,
arXiv:1805.02867). What moves is q, k, v and o, each key block once per block of queries: T² / BLOCK_Q * (D + V) values
instead of several T². Scores are kept in units of log 2, for the hardware has 2^x.

- GQA: query head h reads kv head h // G where it lies; nothing is repeated.
- Query t stands at key t + past: a prompt in chunks starts behind what is cached.
- A window W: key blocks that lie wholly outside are not visited, so that work grows with T W and not with T².
- Soft-cap c: a score becomes c tanh(score / c). A sink is a score of each head without a value: it starts m and l.
- Ragged: sequences one behind the other, `[total, heads, D]`, told apart by cumulative lengths; no padding is computed.
- Left padding: keys before first[b] are hidden; a padded query sees itself alone, as in the reference.

The backward pass is `attention_backward.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of

# By the larger of the two head sizes: queries and keys per block, warps, stages. What fits the registers and the shared
# memory of an H100; fp32 values take twice the room and are multiplied without tensor cores.
CONFIGS = {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)}
BACKWARD = {64: (32, 64, 4, 2), 128: (32, 64, 8, 2), 256: (32, 32, 8, 1)}
FP32 = {64: (32, 32, 4, 1), 128: (16, 16, 8, 1), 256: (16, 16, 4, 1)}
AMD_STAGES = 1  # 64 KiB of shared memory
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(ptr, row_stride, first, rows, columns, count, WIDTH: tl.constexpr):
    """Rows first + rows of a matrix of `count` rows and WIDTH columns; zero outside."""
    inside = ((first + rows) < count)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(ptr + (first + rows)[:, None] * row_stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def scored(q, k, scale, cap, HAS_CAP: tl.constexpr):
    """Scores of a block in units of log 2; q `[Q, D]`, k `[K, D]` -> `[Q, K]`."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if HAS_CAP:
        s = cap * (2.0 * tl.sigmoid(2.0 * s / cap) - 1.0)  # tanh
    return s * LOG2_E


@triton.jit
def seen(at, keys, first, count, WINDOW: tl.constexpr):
    """Whether the query at key `at` sees key `keys`."""
    visible = (keys[None, :] <= at[:, None]) & (keys[None, :] >= first)
    if WINDOW:
        visible = visible & (keys[None, :] > at[:, None] - WINDOW)
    return (visible | (keys[None, :] == at[:, None])) & (keys[None, :] < count)


@triton.jit
def grown(m, mass, o, s, v):
    """The softmax so far (maximum, sum, unnormalised output) and a block more: scores `[Q, K]`, values `[K, V]`."""
    highest = tl.maximum(m, tl.max(s, axis=1))
    anchor = tl.where(highest == float("-inf"), 0.0, highest)  # nothing seen so far: 2^(-inf - 0) is 0, not NaN
    p = tl.exp2(s - anchor[:, None])
    shrink = tl.exp2(m - anchor)
    o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return highest, mass * shrink + tl.sum(p, axis=1), o


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_f32_ptr, sinks_ptr, first_i64_ptr, cu_q_i32_ptr, cu_k_i32_ptr,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    queries, keys, past, first_key, heads, group, scale, cap,
    RAGGED: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_CAP: tl.constexpr,
    WINDOW: tl.constexpr, D: tl.constexpr, V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    q_ptr += batch * q_b + head * q_h
    k_ptr += batch * k_b + head // group * k_h
    v_ptr += batch * v_b + head // group * v_h
    o_ptr += batch * o_b + head * o_h
    if RAGGED:
        begin_q, begin_k = tl.load(cu_q_i32_ptr + batch).to(tl.int64), tl.load(cu_k_i32_ptr + batch).to(tl.int64)
        queries = (tl.load(cu_q_i32_ptr + batch + 1) - begin_q).to(tl.int32)
        keys = (tl.load(cu_k_i32_ptr + batch + 1) - begin_k).to(tl.int32)
        past = keys - queries
        q_ptr, o_ptr = q_ptr + begin_q * q_t, o_ptr + begin_q * o_t
        k_ptr, v_ptr = k_ptr + begin_k * k_t, v_ptr + begin_k * v_t
    block = tl.program_id(0) * BLOCK_Q
    if block >= queries:
        return
    first = 0
    if HAS_FIRST:
        first = (tl.load(first_i64_ptr + batch) - first_key).to(tl.int32)
    rows, columns_d, columns_v = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    at = block + rows + past  # the key at which each query stands
    q = load_rows(q_ptr, q_t, block, rows, columns_d, queries, D)
    m, mass = tl.full((BLOCK_Q,), float("-inf"), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    if HAS_SINKS:
        m, mass = tl.zeros_like(mass) + tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E, mass + 1.0
    o = tl.zeros((BLOCK_Q, BLOCK_V), tl.float32)
    lowest = 0
    if WINDOW:
        lowest = tl.maximum(block + past - WINDOW + 1, 0) // BLOCK_K * BLOCK_K
    highest = tl.minimum(block + BLOCK_Q + past, keys)
    for start in range(lowest, highest, BLOCK_K):
        columns = tl.arange(0, BLOCK_K)
        k = load_rows(k_ptr, k_t, start, columns, columns_d, keys, D)
        v = load_rows(v_ptr, v_t, start, columns, columns_v, keys, V)
        s = tl.where(seen(at, start + columns, first, keys, WINDOW), scored(q, k, scale, cap, HAS_CAP), float("-inf"))
        m, mass, o = grown(m, mass, o, s, v)
    inside = (block + rows < queries)[:, None] & (columns_v < V)[None, :]
    o = o / tl.where(mass == 0.0, 1.0, mass)[:, None]
    o_ptr += (block + rows)[:, None] * o_t + columns_v[None, :]
    tl.store(o_ptr, o.to(o_ptr.dtype.element_ty), mask=inside)
    if not RAGGED:
        kept = tl.program_id(1).to(tl.int64) * queries + block + rows
        tl.store(lse_f32_ptr + kept, m + tl.log2(mass), mask=block + rows < queries)


def attention(
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
) -> tuple[Tensor, Tensor]:
    """q `[B, H, T, D]`, k `[B, K, S, D]`, v `[B, K, S, V]` of one float type, D and V at most 256 and contiguous ->
    o `[B, H, T, V]`, in memory `[B, T, H, V]`, and the logarithms to base 2 of the softmax's sums, fp32 `[B, H, T]`.

    Query t stands at key t + past, by default at the end, and sees that key and those before it: at most `window`, and
    none before first[b] - first_key, `first` int64 `[B]`. `sinks` `[H]`. Raises ValueError for what does not fit.
    """
    check(q, k, v, sinks)
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    past = keys - queries if past is None else past
    if not 0 <= past <= keys - queries:
        raise ValueError(f"attention: past is {past}; {queries} queries behind it need {queries + past} of {keys} keys")
    o = torch.empty(batch, queries, heads, v.shape[-1], dtype=q.dtype, device=q.device).transpose(1, 2)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if o.numel():
        strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3])
        sizes = (queries, keys, past, first_key, heads, heads // k.shape[1])
        tensors = (q, k, v, o, lse, sinks, first, None, None)
        _launch(tensors, strides, sizes, batch, queries, (scale, softcap, window), (q.shape[-1], v.shape[-1]))
    return o, lse


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    longest: int,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Sequences one behind the other: q `[N, H, D]`, k `[M, K, D]`, v `[M, K, V]` -> `[N, H, V]`. Sequence b has the
    rows ends[b] .. ends[b + 1] - 1, `ends_q` and `ends_k` int32 `[B + 1]` from 0 on; its last query stands at its last
    key. `longest`: the most queries of one sequence. Rows beyond the last end stay unwritten. Raises ValueError for
    what does not fit."""
    packed = [each.unsqueeze(0).transpose(1, 2) for each in (q, k, v)]
    check(packed[0], packed[1], packed[2], sinks)
    if ends_q.shape != ends_k.shape or ends_q.dtype != torch.int32 or ends_k.dtype != torch.int32:
        raise ValueError(f"attention: ends are {ends_q.dtype} {list(ends_q.shape)} and {ends_k.dtype} "
                         f"{list(ends_k.shape)}, expected two of int32 [B + 1]")  # fmt: skip
    o = torch.empty(*q.shape[:2], v.shape[-1], dtype=q.dtype, device=q.device)
    if o.numel() and longest:
        strides = [s for each in (q, k, v, o) for s in (0, each.stride(1), each.stride(0))]
        sizes = (0, 0, 0, 0, q.shape[1], q.shape[1] // k.shape[1])
        tensors = (q, k, v, o, None, sinks, None, ends_q, ends_k)
        batch = len(ends_q) - 1
        _launch(tensors, strides, sizes, batch, longest, (scale, softcap, window), (q.shape[-1], v.shape[-1]))
    return o


def _launch(tensors, strides, sizes, batch, longest, shape_of_scores, dims):
    scale, softcap, window = shape_of_scores
    _, _, _, _, _, sinks, first, ends, _ = tensors
    block_q, block_k, warps, stages = config(CONFIGS, *dims, tensors[0].dtype)
    grid = (triton.cdiv(longest, block_q), batch * sizes[4])
    with on_device_of(tensors[0]):
        forward_kernel[grid](
            *tensors, *strides, *sizes, dims[0] ** -0.5 if scale is None else scale, softcap or 0.0,
            RAGGED=ends is not None, HAS_FIRST=first is not None, HAS_SINKS=sinks is not None,
            HAS_CAP=softcap is not None, WINDOW=window or 0, D=dims[0], V=dims[1],
            BLOCK_D=padded(dims[0]), BLOCK_V=padded(dims[1]), BLOCK_Q=block_q, BLOCK_K=block_k,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip


def config(table: dict, head_dim: int, value_dim: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """The table's entry for these head sizes, or that of fp32."""
    table = FP32 if dtype == torch.float32 else table
    *blocks, stages = next(table[size] for size in table if max(head_dim, value_dim) <= size)
    return *blocks, min(stages, AMD_STAGES) if torch.version.hip else stages


def padded(size: int) -> int:
    """What a dimension takes of a product: a power of two, at least 16."""
    return max(triton.next_power_of_2(size), 16)


def check(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> None:
    """That `[B, heads, rows, D]` of q, k and v belong together."""
    if not (q.shape[0] == k.shape[0] == v.shape[0] and q.shape[3] == k.shape[3] and k.shape[1:3] == v.shape[1:3]):
        raise ValueError(f"attention: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} do not fit")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"attention: {q.shape[1]} query heads are no multiple of {k.shape[1]} kv heads")
    if max(q.shape[3], v.shape[3]) > max(CONFIGS):
        raise ValueError(f"attention: heads of {max(q.shape[3], v.shape[3])} values; the limit is {max(CONFIGS)}")
    for name, each in (("q", q), ("k", k), ("v", v)):
        if each.stride(-1) != 1 and each.shape[-1] > 1:
            raise ValueError(f"attention: the last dimension of {name} has stride {each.stride(-1)}, expected 1")
        if each.shape[2] * each.stride(2) >= 2**31:
            raise ValueError(
                f"attention: {name} has {each.shape[2]} rows {each.stride(2)} values apart; the limit is 2^31"
            )
        if each.dtype != q.dtype or each.device != q.device:
            raise ValueError(f"attention: {name} is {each.dtype} on {each.device}, q {q.dtype} on {q.device}")
    if sinks is not None and (sinks.shape != q.shape[1:2] or sinks.device != q.device):
        raise ValueError(f"attention: sinks are {list(sinks.shape)} on {sinks.device}, expected [{q.shape[1]}] of q's")
