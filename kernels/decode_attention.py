"""Attention of one query per sequence over its cache, split over the sequence (Flash-Decoding, Dao et al., 2023).

    o = Σ_s softmax_s(scale q·k_s) v_s

One query reads S (D + V) values per kv head and does next to nothing with them: its time is memory bandwidth, and with
one program per sequence and head a GPU would stand idle. So the sequence is cut in `splits` parts:

1. a program per part, sequence and kv head: all G query heads of a group (up to 16 of them) take each key and value
   block as it is loaded, once; they stand in the 16 rows of a product. It keeps the maximum m, the sum mass
   and the unnormalised output of its part;
2. a program per head joins the parts: o = Σ 2^(m_i - m) o_i / Σ 2^(m_i - m) l_i, plus a sink, a score without a value.

The cache is contiguous, `[B, K, S, D]` with any strides, possibly a ring whose slot s holds position
start - (start - s) mod ring; or paged, `[blocks, size, K, D]` with the numbers of a sequence's blocks in a table
(Kwon et al., arXiv:2309.06180). How many parts there are depends on the size of the cache that is handed over and never
on `lengths`, so that a recorded graph stays valid as they grow; how long its parts are follows from its own length.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of
from minillm.kernels.online_softmax import LOG2_E, check, grown, padded, scored
from minillm.kernels.tuning import LARGE, SMALL, Config, bucket, run

# Keys per step.
CONFIGS = (
    Config("64", (64,), 4, 3, LARGE),
    Config("32", (32,), 4, 4, LARGE),
    Config("64 by 8 warps", (64,), 8, 3, LARGE),
    Config("32", (32,), 4, 1, SMALL),
)
FP32 = (Config("16", (16,), 8, 1),)
PROGRAMS = 528  # enough to fill a GPU of 132 multiprocessors four times
MOST_HEADS = 16  # of a program: the rows that a tensor core takes at least
MAX_SPLITS, LEAST = 64, 128  # parts, and keys that are worth one


@triton.jit
def cache_place(slots, inside, batch, table_ptr, page, table_b, PAGED: tl.constexpr):
    """Where positions lie in a cache: sequence and slot, or by the table block and place within; int64."""
    if PAGED:
        one = tl.load(table_ptr + batch * table_b + slots // page, mask=inside, other=0).to(tl.int64)
        two = (slots % page).to(tl.int64)
    else:
        one, two = batch, slots.to(tl.int64)
    return one, two


@triton.jit
def positions_of(slots, ring, start, PAGED: tl.constexpr):
    """What position each slot holds; with pages it is its number, in a ring the last one up to `start` that fits."""
    position = slots
    if not PAGED and ring > 0:
        position = start - (start - slots + ring) % ring
    return position


@triton.jit(do_not_specialize=["keys", "ring", "start"])  # they grow from step to step
def part_kernel(
    q_ptr, k_ptr, v_ptr, o_f32_ptr, m_f32_ptr, mass_f32_ptr, lengths_i32_ptr, first_i64_ptr, table_i32_ptr,
    q_b, q_h, k_b, k_h, k_s, v_b, v_h, v_s, keys, ring, start, page, table_b, kv_heads, scale, cap,
    PAGED: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_CAP: tl.constexpr,
    WINDOW: tl.constexpr, G: tl.constexpr, D: tl.constexpr, V: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    groups: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G  # of the heads of a kv head
    batch = (tl.program_id(0) // (kv_heads * groups)).to(tl.int64)
    kv_head = (tl.program_id(0) // groups % kv_heads).to(tl.int64)
    length = keys
    if HAS_LENGTHS:
        length = tl.load(lengths_i32_ptr + batch)
        if not PAGED:
            start = length - 1
            length = tl.where(ring > 0, tl.minimum(length, ring), length)
    first = 0
    if HAS_FIRST:
        first = tl.load(first_i64_ptr + batch).to(tl.int32)
    if WINDOW:
        first = tl.maximum(first, length - WINDOW)
    rows = tl.program_id(0) % groups * BLOCK_G + tl.arange(0, BLOCK_G)
    columns_d, columns_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    heads = kv_head * G + rows
    q_at = q_ptr + batch * q_b + heads[:, None] * q_h + columns_d[None, :]
    q = tl.load(q_at, mask=(rows < G)[:, None] & (columns_d < D)[None, :], other=0.0)
    m = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_G,), tl.float32)
    o = tl.zeros((BLOCK_G, BLOCK_V), tl.float32)
    k_ptr, v_ptr = k_ptr + kv_head * k_h, v_ptr + kv_head * v_h
    each = tl.cdiv(tl.cdiv(length, tl.num_programs(1)), BLOCK_S) * BLOCK_S
    begin = tl.program_id(1) * each
    for at in range(begin, tl.minimum(begin + each, length), BLOCK_S):
        slots = at + tl.arange(0, BLOCK_S)
        inside = slots < length
        one, two = cache_place(slots, inside, batch, table_i32_ptr, page, table_b, PAGED)
        k_rows, v_rows = one * k_b + two * k_s, one * v_b + two * v_s
        if HAS_FIRST or WINDOW:
            inside = inside & (positions_of(slots, ring, start, PAGED) >= first)
        k_mask, v_mask = inside[:, None] & (columns_d < D)[None, :], inside[:, None] & (columns_v < V)[None, :]
        k = tl.load(k_ptr + k_rows[:, None] + columns_d[None, :], mask=k_mask, other=0.0)
        v = tl.load(v_ptr + v_rows[:, None] + columns_v[None, :], mask=v_mask, other=0.0)
        s = tl.where(inside[None, :], scored(q, k, scale, cap, HAS_CAP), float("-inf"))
        m, mass, o = grown(m, mass, o, s, v)
    part = (batch * kv_heads * G + heads) * tl.num_programs(1) + tl.program_id(1)
    tl.store(m_f32_ptr + part, m, mask=rows < G)
    tl.store(mass_f32_ptr + part, mass, mask=rows < G)
    if begin < length:  # the output of a part without keys is never looked at
        mask = (rows < G)[:, None] & (columns_v < V)[None, :]
        tl.store(o_f32_ptr + part[:, None] * V + columns_v[None, :], o, mask=mask)


@triton.jit
def join_kernel(
    o_f32_ptr, m_f32_ptr, mass_f32_ptr, sinks_ptr, y_ptr, heads, splits,
    HAS_SINKS: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    parts, columns = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_V)
    inside = parts < splits
    m = tl.load(m_f32_ptr + row * splits + parts, mask=inside, other=float("-inf"))
    mass = tl.load(mass_f32_ptr + row * splits + parts, mask=inside, other=0.0)
    highest = tl.max(m, axis=0)
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + row % heads).to(tl.float32) * LOG2_E
        highest = tl.maximum(highest, sink)
    anchor = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(m - anchor)
    total = tl.sum(weights * mass, axis=0)
    if HAS_SINKS:
        total += tl.exp2(sink - anchor)
    mask = (m > float("-inf"))[:, None] & (columns < V)[None, :]
    o = tl.load(o_f32_ptr + (row * splits + parts)[:, None] * V + columns[None, :], mask=mask, other=0.0)
    y = tl.sum(weights[:, None] * o, axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(y_ptr + row * V + columns, y.to(y_ptr.dtype.element_ty), mask=columns < V)


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    first: Tensor | None = None,
    window: int | None = None,
    ring: int = 0,
    start: int = 0,
    block_table: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """q `[B, H, D]`, k `[B, K, S, D]` and v `[B, K, S, V]`, or with `block_table` int32 `[B, blocks of a sequence]`
    k `[blocks, size, K, D]` and v `[blocks, size, K, V]` -> `[B, H, V]`.

    Of its keys sequence b sees the first lengths[b] (int32 `[B]`, all where None), none at a position before first[b]
    (int64 `[B]`), and at most the last `window`. With a `ring` key s is the slot of a ring of so many, the query at
    position `start`, or, with lengths, at lengths[b] - 1, however many that are. A sequence that sees nothing gives
    zeros. Raises ValueError for what does not fit.
    """
    kv = (k, v) if block_table is None else (k.transpose(1, 2), v.transpose(1, 2))
    _check(q, kv, lengths, first, block_table, sinks, ring)
    (batch, heads, dim), (_, kv_heads, size, value_dim) = q.shape, kv[1].shape
    keys = size if block_table is None else size * block_table.shape[1]
    y = torch.empty(batch, heads, value_dim, dtype=q.dtype, device=q.device)
    if not y.numel():
        return y
    programs = batch * kv_heads * triton.cdiv(heads // kv_heads, MOST_HEADS)
    partial, m, mass = unjoined(y, parts(keys, programs))
    table_stride = 0 if block_table is None else block_table.stride(0)

    def launch(config: Config) -> None:
        part_kernel[programs, m.shape[2]](
            q, *kv, partial, m, mass, lengths, first, block_table, *q.stride()[:2], *kv[0].stride()[:3],
            *kv[1].stride()[:3], keys, ring, start, size, table_stride, kv_heads,
            dim**-0.5 if scale is None else scale, softcap or 0.0,
            PAGED=block_table is not None, HAS_LENGTHS=lengths is not None, HAS_FIRST=first is not None,
            HAS_CAP=softcap is not None, WINDOW=window or 0, G=heads // kv_heads, D=dim, V=value_dim,
            BLOCK_G=MOST_HEADS, BLOCK_D=padded(dim), BLOCK_V=padded(value_dim),
            BLOCK_S=config.blocks[0], **(config.options if block_table is None else config.paged_options),
        )  # fmt: skip

    key = (q.dtype, dim, heads // kv_heads, bucket(batch * kv_heads), block_table is not None)
    table, known = FP32 if q.dtype == torch.float32 else CONFIGS, known_keys(keys, lengths, block_table)
    with on_device_of(q):
        run("decode_attention", key, table, q.device, launch, known, 1024)
        join(partial, m, mass, sinks, y)
    return y


def unjoined(y: Tensor, splits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the outputs, maxima and sums of so many parts of y `[B, H, V]`."""
    batch, heads, value_dim = y.shape
    o = torch.empty(batch, heads, splits, value_dim, dtype=torch.float32, device=y.device)
    m, mass = (torch.empty(batch, heads, splits, dtype=torch.float32, device=y.device) for _ in range(2))
    return o, m, mass


def join(partial: Tensor, m: Tensor, mass: Tensor, sinks: Tensor | None, y: Tensor) -> None:
    """Fill y `[B, H, V]` from its parts."""
    heads, value_dim = y.shape[1:]
    join_kernel[(m.shape[0] * heads,)](
        partial, m, mass, sinks, y, heads, m.shape[2], HAS_SINKS=sinks is not None, V=value_dim,
        BLOCK_V=padded(value_dim), BLOCK_P=MAX_SPLITS,
    )  # fmt: skip


def known_keys(keys: int, lengths: Tensor | None, block_table: Tensor | None) -> int:
    """How many keys there are to read, as far as the host knows: a contiguous cache may be all but empty."""
    return keys if lengths is None or block_table is not None else 0


def parts(keys: int, programs: int) -> int:
    """In how many parts to read caches of `keys` positions: so many that the GPU is filled where `programs` read a part
    each."""
    return max(min(triton.cdiv(PROGRAMS, programs), MAX_SPLITS, triton.cdiv(keys, LEAST)), 1)


def _check(q, kv, lengths, first, block_table, sinks, ring):
    if block_table is None:
        check(q.unsqueeze(2), *kv, sinks)
    else:
        check(q.unsqueeze(2), *(each[:1].expand(len(q), -1, -1, -1) for each in kv), sinks)
        if block_table.dtype != torch.int32 or len(block_table) != len(q) or block_table.stride(1) != 1:
            raise ValueError(f"decode_attention: block_table is {block_table.dtype} {list(block_table.shape)}, "
                             f"expected contiguous int32 [{len(q)}, blocks of a sequence]")  # fmt: skip
    for name, each, kind in (("lengths", lengths, torch.int32), ("first", first, torch.int64)):
        if each is not None and (each.dtype != kind or each.shape != q.shape[:1]):
            raise ValueError(f"decode_attention: {name} is {each.dtype} {list(each.shape)}, expected {kind} [{len(q)}]")
    if block_table is not None and lengths is None:
        raise ValueError("decode_attention: a paged cache needs lengths; its last block may not be full")
    if block_table is not None and ring:
        raise ValueError(f"decode_attention: a ring of {ring} slots on pages; only a contiguous cache may be one")
