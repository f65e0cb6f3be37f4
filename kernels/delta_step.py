"""A layer of the gated delta rule (Yang et al., arXiv:2412.06464) at one position of each row, between its products.

    q, k, v = silu(conv(q, k, v));   q = q / (|q| √K),  k = k / |k|
    S <- e^g S;   S <- S + k (beta (v - Sᵀ k))ᵀ;   o = Sᵀ q;   y = w o / rms(o) * silu(z)

In plain PyTorch that is some thirty calls, four of which read or write all states. Here a program takes one head of one
row, and reads its state of K x V values in fp32 in slices: for Sᵀ k, and once more, out of the cache, to write it and
to sum o. That is 8 K V bytes for 6 K V operations, so that a step takes what a copy of the states takes. The heads of v
that share one of k each make that k again from the ring of inputs: a few values beside the state.

What belongs to position p lies in rings at p modulo their size, so a program reads slots that no program writes, and a
launch may be made twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.launch import on_device_of
from minillm.kernels.online_softmax import padded

EPS = tl.constexpr(1e-6)  # under the root of the sum of squares that q and k are divided by
DEPTH, WARPS = 32, 8  # rows of a state in registers at a time


@triton.jit
def softplus(x):
    """log(1 + e^x), exact for small e^x too."""
    grown = tl.exp(tl.minimum(x, 20.0))
    one_more = 1.0 + grown
    rest = tl.where(one_more == 1.0, 1.0, one_more - 1.0)
    small = tl.where(one_more == 1.0, grown, tl.log(one_more) * (grown / rest))
    return tl.where(x > 20.0, x, small)


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def taken(x_ptr, conv_ptr, ring_ptr, channel, inside, writes, position, slots, ring_s, TAPS: tl.constexpr):
    """silu of the weighted sum of a channel's last TAPS inputs; the newest goes into the ring."""
    new = tl.load(x_ptr + channel, mask=inside, other=0.0)
    tl.store(ring_ptr + position % slots * ring_s + channel, new, mask=inside & writes)
    total = new.to(tl.float32) * tl.load(conv_ptr + channel * TAPS + TAPS - 1, mask=inside, other=0.0).to(tl.float32)
    for back in tl.static_range(1, TAPS):
        slot = (position + slots - back) % slots
        past = tl.load(ring_ptr + slot * ring_s + channel, mask=inside, other=0.0).to(tl.float32)
        total += past * tl.load(conv_ptr + channel * TAPS + TAPS - 1 - back, mask=inside, other=0.0).to(tl.float32)
    return silu(total)


@triton.jit
def step_kernel(
    qkvz_ptr, ba_ptr, conv_ptr, decay_f32_ptr, step_f32_ptr, norm_ptr, inputs_ptr, state_f32_ptr, y_ptr,
    position_i64_ptr, rows_i64_ptr, x_b, ba_b, inputs_b, inputs_s, state_b, state_s, slots, states, heads, share, eps,
    factor, HAS_ROWS: tl.constexpr, TAPS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = batch
    if HAS_ROWS:
        row = tl.load(rows_i64_ptr + batch)
    position = tl.load(position_i64_ptr + batch)
    source, keys = head // share, heads // share * K
    column_k, column_v = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    in_k, in_v = column_k < K, column_v < V
    x_at, ring = qkvz_ptr + batch * x_b, inputs_ptr + row * inputs_b
    first = head % share == 0  # one of the heads that share a key keeps its inputs
    q_from, k_from = source * K, keys + source * K
    whole_q = taken(x_at, conv_ptr, ring, q_from + column_k, in_k, first, position, slots, inputs_s, TAPS)
    whole_k = taken(x_at, conv_ptr, ring, k_from + column_k, in_k, first, position, slots, inputs_s, TAPS)
    q_factor = tl.rsqrt(tl.sum(whole_q * whole_q) + EPS) * K**-0.5
    k_factor = tl.rsqrt(tl.sum(whole_k * whole_k) + EPS)
    v = taken(x_at, conv_ptr, ring, 2 * keys + head * V + column_v, in_v, True, position, slots, inputs_s, TAPS)
    beta = factor * tl.sigmoid(tl.load(ba_ptr + batch * ba_b + head).to(tl.float32))
    a = tl.load(ba_ptr + batch * ba_b + heads + head).to(tl.float32)
    g = -tl.exp(tl.load(decay_f32_ptr + head)) * softplus(a + tl.load(step_f32_ptr + head))

    depth = tl.arange(0, DEPTH)
    head_at = state_f32_ptr + row * state_b + head * (K * V)
    before, behind = head_at + (position + states - 1) % states * state_s, head_at + position % states * state_s
    kept, told = tl.exp(g), tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, K, DEPTH):
        some = start + depth
        k = taken(x_at, conv_ptr, ring, k_from + some, some < K, False, position, slots, inputs_s, TAPS) * k_factor
        at, inside = some[:, None] * V + column_v[None, :], (some < K)[:, None] & in_v[None, :]
        told += tl.sum(tl.load(before + at, mask=inside, other=0.0) * kept * k[:, None], 0)
    d, o = beta * (v - told), tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, K, DEPTH):
        some = start + depth
        q = taken(x_at, conv_ptr, ring, q_from + some, some < K, False, position, slots, inputs_s, TAPS) * q_factor
        k = taken(x_at, conv_ptr, ring, k_from + some, some < K, False, position, slots, inputs_s, TAPS) * k_factor
        at, inside = some[:, None] * V + column_v[None, :], (some < K)[:, None] & in_v[None, :]
        state = tl.load(before + at, mask=inside, other=0.0) * kept + k[:, None] * d[None, :]
        tl.store(behind + at, state, mask=inside)
        o += tl.sum(state * q[:, None], 0)
    z = tl.load(x_at + 2 * keys + heads * V + head * V + column_v, mask=in_v, other=0.0).to(tl.float32)
    w = tl.load(norm_ptr + column_v, mask=in_v, other=0.0).to(tl.float32)
    y = w * o * tl.rsqrt(tl.sum(o * o) / V + eps) * silu(z)
    tl.store(y_ptr + (batch * heads + head) * V + column_v, y.to(y_ptr.dtype.element_ty), mask=in_v)


def delta_step(
    qkvz: Tensor,
    ba: Tensor,
    conv: Tensor,
    decay: Tensor,
    step: Tensor,
    norm: Tensor,
    inputs: Tensor,
    state: Tensor,
    position: Tensor,
    eps: float,
    factor: float = 1.0,
    rows: Tensor | None = None,
) -> Tensor:
    """qkvz `[B, 1, C + H V]`, ba `[B, 1, 2 H]`, conv `[C, J]`, decay and step fp32 `[H]`, norm `[V]`, the rings inputs
    `[rows, slots, C]` and state fp32 `[rows, states, H, K, V]`, position and `rows` int64 `[B]` -> `[B, 1, H V]`.

    Raises ValueError for rings that are too small to keep what is read apart from what is written, and for what does
    not fit or is strided.
    """
    (_, states, heads, keys, values), (channels, taps), slots = state.shape, conv.shape, inputs.shape[1]
    _check(qkvz, ba, conv, norm, inputs, state, (decay, step), (position, rows))
    y = torch.empty(len(qkvz), 1, heads * values, dtype=qkvz.dtype, device=qkvz.device)
    if not y.numel():
        return y
    share = heads // ((channels - heads * values) // 2 // keys)
    with on_device_of(qkvz):
        step_kernel[len(qkvz), heads](
            qkvz, ba, conv, decay, step, norm, inputs, state, y, position, rows, qkvz.stride(0), ba.stride(0),
            *inputs.stride()[:2], *state.stride()[:2], slots, states, heads, share, eps, factor,
            HAS_ROWS=rows is not None, TAPS=taps, K=keys, V=values, BLOCK_K=padded(keys), BLOCK_V=padded(values),
            DEPTH=DEPTH, num_warps=WARPS,
        )  # fmt: skip
    return y


def _check(qkvz, ba, conv, norm, inputs, state, of_heads, integers):
    (_, states, heads, keys, values), (channels, taps), batch = state.shape, conv.shape, len(qkvz)
    given = [list(each.shape) for each in (qkvz, ba, conv, norm, inputs, state, *of_heads)]
    k_heads, rest = divmod(channels - heads * values, 2 * keys)
    wanted = [
        [batch, 1, channels + heads * values], [batch, 1, 2 * heads], given[2], [values],
        [len(state), inputs.shape[1], channels], given[5], [heads], [heads],
    ]  # fmt: skip
    if given != wanted or rest or k_heads < 1 or heads % k_heads:
        raise ValueError(f"delta_step: {given} do not fit; {heads} heads of {keys} x {values} make it {wanted}")
    if states < 2 or inputs.shape[1] < taps:
        raise ValueError(f"delta_step: rings of {states} states and {inputs.shape[1]} inputs; at least 2 and {taps}")
    whole = all(each.is_contiguous() for each in (conv, norm, *of_heads)) and state[:1, :1].is_contiguous()
    if not whole or qkvz.stride(2) != 1 or ba.stride(2) != 1 or inputs.stride(2) != 1:
        raise ValueError("delta_step: the weights and each state must be contiguous, and the last dimension of others")
    if any(each.dtype != torch.float32 for each in (state, *of_heads)):
        raise ValueError(f"delta_step: state, decay and step are {state.dtype}, expected fp32")
    if any(each is not None and (each.dtype != torch.int64 or each.shape != (batch,)) for each in integers):
        raise ValueError(f"delta_step: position and rows are int64 [{batch}]")
