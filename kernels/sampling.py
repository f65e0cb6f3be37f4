"""Temperature, top-k, top-p, min-p and a draw in one launch, a program per row, without sorting the vocabulary.

    kept = {i : z_i >= kth largest} ∩ {the likeliest with mass p} ∩ {p_i >= min_p max p},   z = logits / temperature
    token = argmax over kept of z_i - log E_i,   E_i = -log(1 - u_i)

The last line is a draw from softmax(z) over the kept ones (the Gumbel-max trick: the first of exponential clocks that
run at the rates exp(z_i) rings for i with chance p_i). u comes from a counter-based generator (Philox, Salmon et al.,
2011) keyed by the row's seed and counted by position and token: the same seed and position give the same token,
whatever else is in the batch, and no state is kept.

A sort of 128,000 logits moves them many times. Here both thresholds are found by bisection over the 32 bits of a logit
in an order-preserving integer form: each bit is one pass that counts, or sums up, what lies above a candidate; the
threshold is exact. The passes read the row from the cache of the GPU. All tokens that tie with the kth, or with the
last of the nucleus, are kept; of the latter a sort keeps some.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of

BLOCK, WARPS = 4096, 32


@triton.jit
def scaled(z_ptr, columns, vocabulary, temperature):
    """Logits over the temperature, -inf outside; + 0 makes one zero of two."""
    z = tl.load(z_ptr + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
    return z / temperature + 0.0


@triton.jit
def ordered(z):
    """An unsigned integer for each fp32, in the same order."""
    bits = z.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def kth_largest(z_ptr, vocabulary, temperature, k, BLOCK: tl.constexpr):
    """The largest t that at least k values are not below."""
    t, bit = (k * 0).to(tl.uint32), tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        candidate = t | bit
        bit = bit >> 1
        count = 0
        for start in range(0, vocabulary, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            above = (ordered(scaled(z_ptr, columns, vocabulary, temperature)) >= candidate) & (columns < vocabulary)
            count += tl.sum(above.to(tl.int32), axis=0)
        t = tl.where(count >= k, candidate, t)
    return t


@triton.jit
def nucleus(z_ptr, vocabulary, temperature, least, highest, top_p, BLOCK: tl.constexpr):
    """The largest t with at most 1 - p of the mass of what is kept so far below it."""
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        z = scaled(z_ptr, start + tl.arange(0, BLOCK), vocabulary, temperature)
        total += tl.sum(tl.where(ordered(z) >= least, tl.exp(z - highest), 0.0), axis=0)
    t, bit = least * 0, tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        candidate = t | bit
        bit = bit >> 1
        below = 0.0
        for start in range(0, vocabulary, BLOCK):
            z = scaled(z_ptr, start + tl.arange(0, BLOCK), vocabulary, temperature)
            key = ordered(z)
            below += tl.sum(tl.where((key >= least) & (key < candidate), tl.exp(z - highest), 0.0), axis=0)
        t = tl.where(below <= (1.0 - top_p) * total, candidate, t)
    return t


@triton.jit
def clock(seed, position, columns):
    """log of an exponential variable for each token: precise where it is small, for the smallest wins."""
    zero = columns * 0
    bits, _, _, _ = tl.philox(seed, columns, zero + position.to(tl.int32), zero + (position >> 32).to(tl.int32), zero)
    u = (bits.to(tl.uint32, bitcast=True).to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    u = tl.minimum(u, 0.99999994)  # rounded to 1 its clock would never ring
    return tl.log(tl.where(u < 0.01, u * (1.0 + u * (0.5 + u * 0.3333333)), -tl.log(1.0 - u)))


@triton.jit
def sample_kernel(
    z_ptr, temperature_f32_ptr, top_k_i32_ptr, top_p_f32_ptr, min_p_f32_ptr, seeds_i64_ptr, positions_i64_ptr,
    out_i64_ptr, kept_u8_ptr, z_t, vocabulary, SHOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_t
    temperature = tl.load(temperature_f32_ptr + row)
    greedy = temperature == 0.0
    temperature = tl.where(greedy, 1.0, temperature)
    highest, wrong = float("-inf"), 0
    for start in range(0, vocabulary, BLOCK):
        z = scaled(z_ptr, start + tl.arange(0, BLOCK), vocabulary, temperature)
        wrong += tl.sum(((z != z) | (z == float("inf"))).to(tl.int32), axis=0)
        highest = tl.maximum(highest, tl.max(z, axis=0))
    top_k, top_p, min_p = tl.load(top_k_i32_ptr + row), tl.load(top_p_f32_ptr + row), tl.load(min_p_f32_ptr + row)
    least = (top_k * 0).to(tl.uint32)
    if (top_k > 0) & (top_k < vocabulary) & (greedy == 0):
        least = kth_largest(z_ptr, vocabulary, temperature, top_k, BLOCK)
    top = tl.max(ordered(tl.zeros((1,), tl.float32) + highest), axis=0)
    if (top_p < 1.0) & (greedy == 0):
        least = tl.minimum(
            tl.maximum(least, nucleus(z_ptr, vocabulary, temperature, least, highest, top_p, BLOCK)), top
        )
    seed, position = tl.load(seeds_i64_ptr + row), tl.load(positions_i64_ptr + row)
    best, token = float("-inf"), vocabulary * 0
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = scaled(z_ptr, columns, vocabulary, temperature)
        kept = (ordered(z) >= least) & (tl.exp(z - highest) >= min_p) & (z > float("-inf"))
        noise = tl.where(greedy, 0.0, clock(seed, position, columns))
        score, at = tl.max(tl.where(kept, z - noise, float("-inf")), axis=0, return_indices=True)
        token = tl.where(score > best, start + at, token)
        best = tl.maximum(best, score)
        if SHOW:
            tl.store(kept_u8_ptr + row * vocabulary + columns, kept.to(tl.uint8), mask=columns < vocabulary)
    tl.store(out_i64_ptr + row, tl.where((wrong > 0) | (best == float("-inf")), -1, token).to(tl.int64))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    kept: Tensor | None = None,
) -> Tensor:
    """logits `[B, V]`, rows may lie apart; for each row temperature fp32 (0: the best token, the first of equals),
    top_k int32 (0: off), top_p and min_p fp32 (1 and 0: off), seed and position int64 -> tokens int64 `[B]`, -1 for a
    row with NaN or infinity in it, or nothing but -inf.

    `kept` uint8 `[B, V]` is filled with which tokens the draw was among. Raises ValueError for what does not fit.
    """
    if logits.dim() != 2 or (logits.stride(1) != 1 and logits.shape[1] > 1) or not logits.shape[1]:
        raise ValueError(f"sample: logits are {list(logits.shape)} with strides {logits.stride()}, expected [B, V], V "
                         "contiguous")  # fmt: skip
    rows = {
        "temperature": (temperature, torch.float32),
        "top_k": (top_k, torch.int32),
        "top_p": (top_p, torch.float32),
        "min_p": (min_p, torch.float32),
        "seeds": (seeds, torch.int64),
        "positions": (positions, torch.int64),
    }
    for name, (each, kind) in rows.items():
        if each.shape != logits.shape[:1] or each.dtype != kind or each.device != logits.device or each.stride(0) != 1:
            raise ValueError(f"sample: {name} is {each.dtype} {list(each.shape)} on {each.device}, expected contiguous "
                             f"{kind} [{len(logits)}] on {logits.device}")  # fmt: skip
    if kept is not None and (kept.shape != logits.shape or kept.dtype != torch.uint8 or not kept.is_contiguous()):
        raise ValueError(f"sample: kept is {kept.dtype} {list(kept.shape)}, expected torch.uint8 {list(logits.shape)}")
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if len(logits):
        block = min(BLOCK, triton.next_power_of_2(logits.shape[1]))
        with on_device_of(logits):
            sample_kernel[(len(logits),)](
                logits, temperature, top_k, top_p, min_p, seeds, positions, tokens, kept, logits.stride(0),
                logits.shape[1], SHOW=kept is not None, BLOCK=block, num_warps=WARPS,
            )  # fmt: skip
    return tokens
