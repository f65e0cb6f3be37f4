"""What all kernels of attention share: a softmax that is computed while its scores come in, block by block.

    m' = max(m, max s)     l' = l 2^(m - m') + Σ 2^(s - m')     o' = o 2^(m - m') + Σ 2^(s - m') v       y = o / l

The running maximum m, the sum l and the unnormalised output o stay in registers; when m grows, the others are scaled
down (Milakov & Gimelshein, arXiv:1805.02867). So no score is ever written to memory. Scores are kept in units of log 2,
for the hardware has 2^x.
"""

import triton
import triton.language as tl
from torch import Tensor

LARGEST = 256  # values of a head
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    """2 sigmoid(2x) - 1 loses what is small beside 1, so below 0.625 an odd polynomial stands in (Cephes' tanhf)."""
    square = x * x
    series = -5.70498872745e-3 * square + 2.06390887954e-2
    series = series * square - 5.37397155531e-2
    series = series * square + 1.33314422036e-1
    series = series * square - 3.33332819422e-1
    return tl.where(tl.abs(x) < 0.625, series * square * x + x, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


@triton.jit
def softcapped(z, cap):
    """c tanh(z / c), of scores and of logits (Gemma 2, arXiv:2408.00118)."""
    return cap * tanh(z / cap)


@triton.jit
def load_rows(ptr, row_stride, first, rows, columns, count, WIDTH: tl.constexpr, WHOLE: tl.constexpr = False):
    """Rows first + rows of a matrix of `count` rows and WIDTH columns; zero outside, or WHOLE: no row is."""
    at = ptr + (first + rows)[:, None] * row_stride + columns[None, :]
    if WHOLE and columns.shape[0] == WIDTH:
        block = tl.load(at)
    elif WHOLE:
        block = tl.load(at, mask=(columns < WIDTH)[None, :], other=0.0)
    else:
        block = tl.load(at, mask=((first + rows) < count)[:, None] & (columns < WIDTH)[None, :], other=0.0)
    return block


@triton.jit
def scored(q, k, scale, cap, HAS_CAP: tl.constexpr):
    """Scores of a block in units of log 2; q `[Q, D]`, k `[K, D]` -> `[Q, K]`."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
    if HAS_CAP:
        s = softcapped(s, cap * LOG2_E)
    return s


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


def padded(size: int) -> int:
    """What a dimension takes of a product: a power of two, at least 16."""
    return max(triton.next_power_of_2(size), 16)


def check(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> None:
    """That `[B, heads, rows, D]` of q, k and v belong together."""
    if not (q.shape[0] == k.shape[0] == v.shape[0] and q.shape[3] == k.shape[3] and k.shape[1:3] == v.shape[1:3]):
        raise ValueError(f"attention: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} do not fit")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"attention: {q.shape[1]} query heads are no multiple of {k.shape[1]} kv heads")
    if max(q.shape[3], v.shape[3]) > LARGEST:
        raise ValueError(f"attention: heads of {max(q.shape[3], v.shape[3])} values; the limit is {LARGEST}")
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
