"""Attention over many queries without the matrix of scores (FlashAttention-2, Dao, arXiv:2307.08691).

    o_t = Σ_s softmax_s(scale q_t·k_s) v_s          s over the keys that query t may see

Written out, the scores of a prompt of T tokens are T² values per head, written and read several times. Here a program
owns a block of queries of one head and goes over blocks of keys with a softmax that grows block by block
(`online_softmax.py`). What moves is q, k, v and o, each key block once per block of queries: T² / BLOCK_Q * (D + V)
values instead of several T².

- GQA: query head h reads kv head h // G where it lies; nothing is repeated.
- Query t stands at key t + past: a prompt in chunks starts behind what is cached.
- A window W: key blocks that lie wholly outside are not visited, so that work grows with T W and not with T².
- Of the blocks visited, those that every query of the block sees whole need no comparisons: only those at the window's
  edge and on the diagonal are masked. Programs with the most keys start first, for they end last.
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
from minillm.kernels.online_softmax import LOG2_E, check, grown, load_rows, padded, scored, seen
from minillm.kernels.tuning import HOPPER, LARGE, SMALL, Config, bucket, run

# By the sizes of keys and values up to which it is: queries and keys per block. Keys wider than their values are those
# of latent attention over a prompt. fp32 values take twice the room and are multiplied without tensor cores.
CONFIGS: dict[tuple[int, int], tuple[Config, ...]] = {
    (64, 64): (
        Config("128x64", (128, 64), 8, 3, LARGE),
        Config("64x64", (64, 64), 4, 3, LARGE),
        Config("128x128", (128, 128), 8, 2, HOPPER),
        Config("64x32", (64, 32), 4, 1, SMALL),
    ),
    (128, 128): (
        Config("128x64", (128, 64), 8, 3, LARGE),
        Config("128x32", (128, 32), 8, 3, LARGE),
        Config("64x32", (64, 32), 4, 1, SMALL),
    ),
    (256, 128): (
        Config("128x32", (128, 32), 8, 3, LARGE),
        Config("128x64", (128, 64), 8, 2, HOPPER),
        Config("32x16", (32, 16), 4, 1, SMALL),
    ),
    (256, 256): (
        Config("64x64", (64, 64), 8, 2, HOPPER),
        Config("64x32", (64, 32), 8, 2, LARGE),
        Config("32x16", (32, 16), 4, 1, SMALL),
    ),
}
FP32: dict[tuple[int, int], tuple[Config, ...]] = {
    (64, 64): (Config("32x32", (32, 32), 4, 1),),
    (128, 128): (Config("16x16", (16, 16), 8, 1),),
    (256, 256): (Config("16x16", (16, 16), 8, 1),),
}


@triton.jit
def visit(
    m, mass, o, q, k_ptr, v_ptr, k_t, v_t, begin, end, at, first, keys, scale, cap, MASKED: tl.constexpr,
    HAS_CAP: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr, V: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The softmax so far, and the key blocks from `begin` to `end` more."""
    columns, columns_d, columns_v = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    for start in range(begin, end, BLOCK_K):
        k = load_rows(k_ptr, k_t, start, columns, columns_d, keys, D, not MASKED)
        v = load_rows(v_ptr, v_t, start, columns, columns_v, keys, V, not MASKED)
        s = scored(q, k, scale, cap, HAS_CAP)
        if MASKED:
            s = tl.where(seen(at, start + columns, first, keys, WINDOW), s, float("-inf"))
        m, mass, o = grown(m, mass, o, s, v)
    return m, mass, o


@triton.jit
def bounds(block, past, first, keys, HAS_FIRST: tl.constexpr, WINDOW: tl.constexpr, BLOCK_Q: tl.constexpr,
           BLOCK_K: tl.constexpr):  # fmt: skip
    """Of the key blocks of a block of queries: from `lowest` on some query sees some key, from `whole` to `diagonal`
    all see all, and to `highest` some see some again."""
    highest = tl.minimum(block + BLOCK_Q + past, keys)
    lowest, whole = 0, 0
    if WINDOW:
        lowest = tl.maximum(block + past - WINDOW + 1, 0) // BLOCK_K * BLOCK_K
        whole = tl.maximum(block + BLOCK_Q + past - WINDOW, 0)
    if WINDOW or HAS_FIRST:
        whole = tl.cdiv(tl.maximum(whole, first), BLOCK_K) * BLOCK_K
        whole = tl.maximum(tl.minimum(whole, tl.cdiv(highest, BLOCK_K) * BLOCK_K), lowest)
    return lowest, whole, tl.maximum((block + past + 1) // BLOCK_K * BLOCK_K, whole), highest


@triton.jit(do_not_specialize=["queries", "keys", "past", "first_key"])  # they grow from step to step
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_f32_ptr, sinks_ptr, first_i64_ptr, cu_q_i32_ptr, cu_k_i32_ptr,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    queries, keys, past, first_key, heads, share, scale, cap,
    RAGGED: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_CAP: tl.constexpr,
    WINDOW: tl.constexpr, D: tl.constexpr, V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    q_ptr, o_ptr = q_ptr + batch * q_b + head * q_h, o_ptr + batch * o_b + head * o_h
    k_ptr, v_ptr = k_ptr + batch * k_b + head // share * k_h, v_ptr + batch * v_b + head // share * v_h
    if RAGGED:
        begin_q, begin_k = tl.load(cu_q_i32_ptr + batch).to(tl.int64), tl.load(cu_k_i32_ptr + batch).to(tl.int64)
        queries = (tl.load(cu_q_i32_ptr + batch + 1) - begin_q).to(tl.int32)
        keys = (tl.load(cu_k_i32_ptr + batch + 1) - begin_k).to(tl.int32)
        past = keys - queries
        q_ptr, o_ptr = q_ptr + begin_q * q_t, o_ptr + begin_q * o_t
        k_ptr, v_ptr = k_ptr + begin_k * k_t, v_ptr + begin_k * v_t
    block = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_Q
    if block >= queries:
        return
    first = 0
    if HAS_FIRST:
        first = (tl.load(first_i64_ptr + batch) - first_key).to(tl.int32)
    rows, columns_v = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_V)
    at = block + rows + past  # the key at which each query stands
    q = load_rows(q_ptr, q_t, block, rows, tl.arange(0, BLOCK_D), queries, D)
    m, mass = tl.full((BLOCK_Q,), float("-inf"), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    if HAS_SINKS:
        m, mass = tl.zeros_like(mass) + tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E, mass + 1.0
    o = tl.zeros((BLOCK_Q, BLOCK_V), tl.float32)
    lowest, whole, diagonal, highest = bounds(block, past, first, keys, HAS_FIRST, WINDOW, BLOCK_Q, BLOCK_K)
    if WINDOW or HAS_FIRST:
        m, mass, o = visit(
            m, mass, o, q, k_ptr, v_ptr, k_t, v_t, lowest, whole, at, first, keys, scale, cap, True,
            HAS_CAP, WINDOW, D, V, BLOCK_D, BLOCK_V, BLOCK_K)  # fmt: skip
    m, mass, o = visit(
        m, mass, o, q, k_ptr, v_ptr, k_t, v_t, whole, diagonal, at, first, keys, scale, cap, False,
        HAS_CAP, WINDOW, D, V, BLOCK_D, BLOCK_V, BLOCK_K)  # fmt: skip
    m, mass, o = visit(
        m, mass, o, q, k_ptr, v_ptr, k_t, v_t, diagonal, highest, at, first, keys, scale, cap, True,
        HAS_CAP, WINDOW, D, V, BLOCK_D, BLOCK_V, BLOCK_K)  # fmt: skip
    inside = (block + rows < queries)[:, None] & (columns_v < V)[None, :]
    o = o / tl.where(mass == 0.0, 1.0, mass)[:, None]
    o_ptr += (block + rows).to(tl.int64)[:, None] * o_t + columns_v[None, :]
    tl.store(o_ptr, o.to(o_ptr.dtype.element_ty), mask=inside)
    if not RAGGED:
        kept = tl.program_id(0).to(tl.int64) * queries + block + rows
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
    q, _, _, _, _, sinks, first, ends, _ = tensors
    dim, value_dim = dims
    constants = {
        "RAGGED": ends is not None, "HAS_FIRST": first is not None, "HAS_SINKS": sinks is not None,
        "HAS_CAP": softcap is not None, "WINDOW": window or 0, "D": dim, "V": value_dim, "BLOCK_D": padded(dim),
        "BLOCK_V": padded(value_dim),
    }  # fmt: skip
    scales = (dim**-0.5 if scale is None else scale, softcap or 0.0)

    def launch(config: Config) -> None:
        block_q, block_k = config.blocks
        grid = (batch * sizes[4], triton.cdiv(longest, block_q))
        forward_kernel[grid](
            *tensors, *strides, *sizes, *scales, **constants, BLOCK_Q=block_q, BLOCK_K=block_k, **config.options
        )

    key = (q.dtype, dim, value_dim, bucket(longest), window is not None, softcap is not None)
    with on_device_of(q):
        run("attention", key, configs(CONFIGS, dim, value_dim, q.dtype), q.device, launch, longest, 256)


def configs(
    table: dict[tuple[int, int], tuple[Config, ...]], dim: int, value_dim: int, dtype: torch.dtype
) -> tuple[Config, ...]:
    """The table's entry for these head sizes, or that of fp32."""
    chosen = FP32 if dtype == torch.float32 else table
    return next(chosen[size] for size in chosen if dim <= size[0] and value_dim <= size[1])
