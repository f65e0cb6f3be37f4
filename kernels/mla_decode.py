"""Absorbed latent attention of one query per sequence over the latent cache (DeepSeek-V2, arXiv:2405.04434).

    o_h = Σ_s softmax_s(scale q_h·[c_s | r_s]) c_s

All H heads share one key per position, the latent c of R values beside a rotary key r of P, and the value is c itself.
So a position is R + P values for all heads together (576 in published models), read once: the scores take the tile of
[c | r], the sum takes the tile of c that is already there. Keys and values of each head, written out, would be
H (N + P + V) values, 40,960 of them in DeepSeek-V3.

As in `decode_attention.py` the sequence is cut in parts that a second kernel joins; a program takes a block of heads,
so that with 128 heads each tile of the cache is read 128 / BLOCK_H times, from the cache of the GPU mostly. R and P are
loaded as two tiles, for 576 is no power of two. The cache is contiguous, `[B, S, R + P]`, or paged.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.decode_attention import cache_place, join, known_keys, parts, unjoined
from minillm.kernels.launch import on_device_of
from minillm.kernels.online_softmax import LOG2_E, grown, padded
from minillm.kernels.tuning import HOPPER, LARGE, SMALL, Config, bucket, run

# Heads and positions per tile: the more heads, the less often each position is read.
CONFIGS = (
    Config("16x32", (16, 32), 8, 3, LARGE),
    Config("64x32", (64, 32), 8, 2, HOPPER),
    Config("32x32", (32, 32), 8, 3, HOPPER),
    Config("16x16", (16, 16), 8, 1, SMALL),
)
FP32 = (Config("16x16", (16, 16), 8, 1),)


@triton.jit(do_not_specialize=["keys"])  # they grow from step to step
def part_kernel(
    q_ptr, c_ptr, o_f32_ptr, m_f32_ptr, mass_f32_ptr, lengths_i32_ptr, first_i64_ptr, table_i32_ptr,
    q_b, q_h, c_b, c_s, keys, page, table_b, heads, scale,
    PAGED: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_FIRST: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    length = keys
    if HAS_LENGTHS:
        length = tl.load(lengths_i32_ptr + batch)
    first = 0
    if HAS_FIRST:
        first = tl.load(first_i64_ptr + batch).to(tl.int32)
    rows = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    columns_r, columns_p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    head, in_r, in_p = (rows < heads)[:, None], (columns_r < R)[None, :], (columns_p < P)[None, :]
    q_at = q_ptr + batch * q_b + rows[:, None] * q_h
    q_c = tl.load(q_at + columns_r[None, :], mask=head & in_r, other=0.0)
    q_r = tl.load(q_at + R + columns_p[None, :], mask=head & in_p, other=0.0)
    m = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_H,), tl.float32)
    o = tl.zeros((BLOCK_H, BLOCK_R), tl.float32)
    each = tl.cdiv(tl.cdiv(length, tl.num_programs(1)), BLOCK_S) * BLOCK_S
    begin = tl.program_id(1) * each
    for at in range(begin, tl.minimum(begin + each, length), BLOCK_S):
        slots = at + tl.arange(0, BLOCK_S)
        inside = (slots < length) & (slots >= first)
        one, two = cache_place(slots, inside, batch, table_i32_ptr, page, table_b, PAGED)
        c_at = c_ptr + one * c_b + two * c_s
        c = tl.load(c_at[:, None] + columns_r[None, :], mask=inside[:, None] & in_r, other=0.0)
        r = tl.load(c_at[:, None] + R + columns_p[None, :], mask=inside[:, None] & in_p, other=0.0)
        s = tl.dot(q_c, tl.trans(c), input_precision="ieee") + tl.dot(q_r, tl.trans(r), input_precision="ieee")
        s = tl.where(inside[None, :], s * scale * LOG2_E, float("-inf"))
        m, mass, o = grown(m, mass, o, s, c)
    part = (batch * heads + rows) * tl.num_programs(1) + tl.program_id(1)
    tl.store(m_f32_ptr + part, m, mask=rows < heads)
    tl.store(mass_f32_ptr + part, mass, mask=rows < heads)
    if begin < length:  # the output of a part without keys is never looked at
        tl.store(o_f32_ptr + part[:, None] * R + columns_r[None, :], o, mask=head & in_r)


def mla_decode(
    q: Tensor,
    latent: Tensor,
    value_dim: int,
    lengths: Tensor | None = None,
    first: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """q `[B, H, R + P]`, latent `[B, S, R + P]`, or `[blocks, size, R + P]` with `block_table` int32
    `[B, blocks of a sequence]`; R is `value_dim` -> `[B, H, R]`.

    Sequence b sees its first lengths[b] positions (int32 `[B]`, all where None), none before first[b] (int64 `[B]`);
    one that sees nothing gives zeros. `scale` is 1 / sqrt(R + P) where None; `sinks` `[H]` take their share of each
    head's softmax and give nothing. Raises ValueError for what does not fit.
    """
    _check(q, latent, value_dim, lengths, first, block_table)
    if sinks is not None and (sinks.shape != q.shape[1:2] or sinks.device != q.device):
        raise ValueError(f"mla_decode: sinks are {list(sinks.shape)} on {sinks.device}, expected [{q.shape[1]}] of q's")
    (batch, heads, width), size = q.shape, latent.shape[1]
    keys = size if block_table is None else size * block_table.shape[1]
    y = torch.empty(batch, heads, value_dim, dtype=q.dtype, device=q.device)
    if not y.numel():
        return y
    splits = parts(keys, batch * triton.cdiv(heads, 64))
    partial, m, mass = unjoined(y, splits)
    table_stride = 0 if block_table is None else block_table.stride(0)

    def launch(config: Config) -> None:
        block_h, block_s = config.blocks
        part_kernel[triton.cdiv(heads, block_h), splits, batch](
            q, latent, partial, m, mass, lengths, first, block_table, *q.stride()[:2], *latent.stride()[:2], keys, size,
            table_stride, heads, width**-0.5 if scale is None else scale,
            PAGED=block_table is not None, HAS_LENGTHS=lengths is not None, HAS_FIRST=first is not None,
            R=value_dim, P=width - value_dim, BLOCK_R=padded(value_dim), BLOCK_P=padded(width - value_dim),
            BLOCK_H=block_h, BLOCK_S=block_s,
            **(config.options if block_table is None else config.paged_options),
        )  # fmt: skip

    key = (q.dtype, width, value_dim, heads, bucket(batch), block_table is not None)
    known = known_keys(keys, lengths, block_table)
    with on_device_of(q):
        run("mla_decode", key, FP32 if q.dtype == torch.float32 else CONFIGS, q.device, launch, known, 1024)
        join(partial, m, mass, sinks, y)
    return y


def _check(q, latent, value_dim, lengths, first, block_table):
    if q.shape[2] != latent.shape[2] or not 0 < value_dim < q.shape[2]:
        raise ValueError(
            f"mla_decode: q {list(q.shape)}, latent {list(latent.shape)} and {value_dim} values do not fit"
        )
    if block_table is None and len(latent) != len(q):
        raise ValueError(f"mla_decode: {len(q)} queries for {len(latent)} sequences; a paged cache needs a block_table")
    for name, each in (("q", q), ("latent", latent)):
        if each.stride(-1) != 1:
            raise ValueError(f"mla_decode: the last dimension of {name} has stride {each.stride(-1)}, expected 1")
        if each.dtype != q.dtype or each.device != q.device:
            raise ValueError(f"mla_decode: {name} is {each.dtype} on {each.device}, q {q.dtype} on {q.device}")
    for name, each, kind in (("lengths", lengths, torch.int32), ("first", first, torch.int64)):
        if each is not None and (each.dtype != kind or each.shape != q.shape[:1]):
            raise ValueError(f"mla_decode: {name} is {each.dtype} {list(each.shape)}, expected {kind} [{len(q)}]")
    fits = block_table is None or (len(block_table) == len(q) and block_table.stride(1) == 1)
    if not fits or (block_table is not None and block_table.dtype != torch.int32):
        raise ValueError(f"mla_decode: block_table is {block_table.dtype} {list(block_table.shape)}, expected int32 "
                         f"[{len(q)}, blocks of a sequence]")  # fmt: skip
    if block_table is not None and lengths is None:
        raise ValueError("mla_decode: a paged cache needs lengths; its last block may not be full")
