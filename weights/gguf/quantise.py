"""Values as blocks: for each kind that is written, what `simple.py` and `superblocks.py` undo.

All functions take fp32 `[N, values of a block]` and give uint8 `[N, bytes of a block]`. The formulas are those of
ggml-quants.c (llama.cpp, MIT) for values without weights of importance. Blocks whose scale is that of their largest
value are equal to its own bit for bit; where a scale is searched for, the search is the same and sums may differ in
their last bit, so that of two equally good scales the other may be taken.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from minillm.weights.gguf.simple import NONLINEAR

TINY = 1e-15  # a run of nothing larger is taken for zeros
LARGEST = torch.finfo(torch.float16).max  # that a file can have, but in F32 and BF16: scales are fp16


def q8_0(x: Tensor) -> Tensor:
    """d = max |x| / 127, q = round(x / d), halves away from zero."""
    scale = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _inverse(scale)
    whole = scaled.abs().floor()
    rounded = (whole + (2 * (scaled.abs() - whole)).floor()).copysign(scaled)
    return _joined(scale.half(), rounded.to(torch.int8))


def q4_0(x: Tensor) -> Tensor:
    """d = m / -8 for the value m farthest from zero, q = trunc(x / d + 8.5), at most 15."""
    scale, q = _farthest(x, 4)
    return _joined(scale.half(), packed(q, 16, 4))


def q5_0(x: Tensor) -> Tensor:
    """d = m / -16 for the value m farthest from zero, q = trunc(x / d + 16.5), at most 31."""
    scale, q = _farthest(x, 5)
    return _joined(scale.half(), packed(q >> 4, 1, 1), packed(q & 15, 16, 4))


def q4_1(x: Tensor) -> Tensor:
    """m = min x, d = (max x - m) / 15, q = trunc((x - m) / d + 1/2)."""
    scale, least, q = _range(x, 4)
    return _joined(scale.half(), least.half(), packed(q, 16, 4))


def q5_1(x: Tensor) -> Tensor:
    """m = min x, d = (max x - m) / 31, q = trunc((x - m) / d + 1/2)."""
    scale, least, q = _range(x, 5)
    return _joined(scale.half(), least.half(), packed(q >> 4, 1, 1), packed(q & 15, 16, 4))


def iq4_nl(x: Tensor) -> Tensor:
    """The d of least error of x - d NONLINEAR[q], weighted by x², of 16 that give the farthest value a number near the
    end of the table; then the nearest q."""
    columns = x.t().contiguous()
    farthest, weight = _extreme(columns), columns.square()
    tries = [-NONLINEAR[0], *(NONLINEAR[0] + i for i in range(-7, 8))]
    inverse, (codes, numbers) = _inverse(farthest), _by_halves()
    scale = _fitted(columns, weight, (i * inverse for i in tries), lambda scaled: _looked_up(numbers, scaled))
    scale = torch.where(farthest.abs() < TINY, 0.0, scale)
    q = _looked_up(codes, columns * _inverse(scale))
    return _joined(scale.half()[:, None], packed(q.t(), 16, 4))


def q4_k(x: Tensor) -> Tensor:
    """8 runs of 32, x = d s q - m z with 4 bits for q and 6 for s and z (`_with_minima`)."""
    d, m, scales, q = _with_minima(x, 15, [-1.0 + 0.1 * i for i in range(21)])
    return _joined(d, m, scales, packed(q, 32, 4))


def q5_k(x: Tensor) -> Tensor:
    """8 runs of 32, x = d s q - m z with 5 bits for q and 6 for s and z (`_with_minima`)."""
    d, m, scales, q = _with_minima(x, 31, [-0.5 + 0.1 * i for i in range(16)])
    return _joined(d, m, scales, packed(q >> 4, 32, 1), packed(q & 15, 32, 4))


def q6_k(x: Tensor) -> Tensor:
    """16 runs of 16, x = d s (q - 32): of each run the scale of least error, weighted by x², of 19 that give the
    farthest value a number near -32; d gives the largest of these s = -128."""
    runs = x.reshape(-1, 16).t().contiguous()
    farthest = _extreme(runs)
    inverse = _inverse(farthest)
    tries = (-(32 + 0.1 * i) * inverse for i in range(-9, 10))
    found = _fitted(runs, runs.square(), tries, lambda scaled: scaled.round().clamp_(-32, 31))
    found = torch.where(farthest.abs() < TINY, 0.0, found).view(-1, 16)
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    d = torch.where(largest.abs() < TINY, 0.0, largest / -128).half()
    s = (found * _inverse(largest / -128)).round().clamp(-128, 127)
    s = torch.where(largest.abs() < TINY, 0.0, s)
    steps = _inverse(d.float() * s)
    q = (x.view(len(x), 16, 16) * steps[..., None]).round().clamp(-32, 31).view(len(x), 256)
    q = (q + 32).to(torch.uint8)
    return _joined(packed(q & 15, 64, 4), packed(q >> 4, 32, 2), s.to(torch.int8), d)


QUANTISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda x: x.view(torch.uint8),
    "F16": lambda x: x.half().view(torch.uint8),
    "BF16": lambda x: x.bfloat16().view(torch.uint8),
    "Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "IQ4_NL": iq4_nl,
    "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}  # fmt: skip


def packed(values: Tensor, run: int, bits: int) -> Tensor:
    """What `bits.planes` undoes: uint8 `[N, V]` of `bits` bits each -> uint8 `[N, V * bits / 8]`."""
    parts = values.reshape(len(values), -1, 8 // bits, run)
    made = parts[:, :, 0].clone()
    for i in range(1, 8 // bits):
        made |= parts[:, :, i] << (bits * i)
    return made.view(len(values), -1)


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where that is more than a number."""
    return torch.where(x.abs() >= torch.finfo(torch.float32).tiny, 1 / x, 0.0)


def _extreme(columns: Tensor) -> Tensor:
    """The value farthest from zero of each column of `[block, N]`."""
    return columns.gather(0, columns.abs().argmax(0, keepdim=True))[0]


def _farthest(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    half = 2 ** (bits - 1)
    scale = x.gather(1, x.abs().argmax(1, keepdim=True)) / -half
    return scale, (x * _inverse(scale) + (half + 0.5)).clamp(0, 2 * half - 1).to(torch.uint8)


def _range(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    least, most = x.aminmax(dim=1, keepdim=True)
    scale = (most - least) / (2**bits - 1)
    return scale, least, ((x - least) * _inverse(scale) + 0.5).clamp(0, 2**bits - 1).to(torch.uint8)


@functools.cache
def _by_halves() -> tuple[Tensor, Tensor]:
    """For each half from -128 to 128 the code of the nearest number of the table, of two the larger, and the number:
    what is nearest changes at halves only."""
    middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(NONLINEAR)])
    codes = torch.bucketize(torch.arange(-256, 257) / 2, middles, right=True)
    return codes.to(torch.uint8), torch.tensor(NONLINEAR, dtype=torch.float32)[codes]


def _looked_up(halves: Tensor, scaled: Tensor) -> Tensor:
    at = (2 * scaled).floor_().clamp_(-256, 256).add_(256).int()
    return halves.index_select(0, at.view(-1)).view(scaled.shape)


def _fitted(columns: Tensor, weight: Tensor, tries: Iterable[Tensor], whole: Callable[[Tensor], Tensor]) -> Tensor:
    """Scales `[N]` of columns `[block, N]`: of the inverse scales to try, `[N]` each, the one whose numbers q =
    whole(x / scale) leave the least error, with the scale that is best for these, w x q / w q²."""
    product = weight * columns
    best = columns.new_full((columns.shape[1],), -1.0)
    scale = torch.zeros_like(best)
    for inverse in tries:
        q = whole(columns * inverse)
        dot, square = (product * q).sum(0), (weight * q).mul_(q).sum(0)
        fitting = dot * _inverse(square)
        gain = fitting * dot
        better = gain > best
        best, scale = torch.where(better, gain, best), torch.where(better, fitting, scale)
    return scale


def _with_minima(x: Tensor, top: int, shifts: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d and m, fp16 `[N, 1]`, the packed s and z `[N, 12]` and q, uint8 `[N, 256]`: of each run the best scale and
    minimum of those tried, and all scales and minima of a block in 63 steps of the largest."""
    runs = x.reshape(-1, 32).t().contiguous()
    scale, least = (each.view(-1, 8) for each in _scale_and_minimum(runs, top, shifts))
    steps = [(each.amax(1, keepdim=True).clamp(min=0), each) for each in (scale, least)]
    d, m = ((largest / 63).half() for largest, _ in steps)
    s, z = ((each * (63 * _inverse(largest))).round().clamp(0, 63) for largest, each in steps)
    step, start = (d.float() * s)[..., None], (m.float() * z)[..., None]
    q = ((x.view(len(x), 8, 32) + start) * _inverse(step)).round().clamp(0, top)
    a, b, e, f = (each.to(torch.uint8) for part in (s, z) for each in part.split(4, dim=1))
    packed_scales = torch.cat((a | b >> 4 << 6, e | f >> 4 << 6, b & 15 | (f & 15) << 4), dim=1)
    return d, m, packed_scales, q.to(torch.uint8).view(len(x), 256)


def _scale_and_minimum(x: Tensor, top: int, shifts: list[float]) -> tuple[Tensor, Tensor]:
    """For columns `[32, N]` the s >= 0 and z >= 0, `[N]` each, of least error of x - (s q - z), q from 0 to `top`,
    weighted by the root mean square of the column plus |x|. For ranges from the least value, or the best -z so far, to
    a bit more or less than the largest, q is rounded, and s and z are the best for it: those of linear regression, or
    without z if it would be negative."""
    weight = x.square().mean(0).sqrt() + x.abs()
    low, high = x.amin(0).clamp(max=0), x.amax(0)
    product = weight * x
    sum_w, sum_x = weight.sum(0), product.sum(0)
    scale, least = (high - low) / top, -low  # of values that are all the same
    best = torch.full_like(low, -torch.inf)
    for shift in shifts:
        q = ((x + least) * ((top + shift) * _inverse(high + least))).round_().clamp_(0, top)
        weighted = weight * q
        sum_q, sum_xq, sum_qq = weighted.sum(0), (product * q).sum(0), weighted.mul_(q).sum(0)
        inverse_d = _inverse((sum_w * sum_qq - sum_q * sum_q).clamp(min=0))
        s = (sum_w * sum_xq - sum_x * sum_q) * inverse_d
        z = (sum_q * sum_xq - sum_qq * sum_x) * inverse_d
        s = torch.where(z < 0, sum_xq * _inverse(sum_qq), s)
        z = z.clamp(min=0)
        gain = s * sum_xq - z * sum_x  # the weighted sum of x² less the error, as the two are the best
        better = (gain > best) & (inverse_d > 0)
        best = torch.where(better, gain, best)
        scale, least = torch.where(better, s, scale), torch.where(better, z, least)
    return scale, least
