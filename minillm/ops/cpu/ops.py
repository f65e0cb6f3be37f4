"""The seam's ops on a CPU: the compiled loops of `minillm/ops/cpu/loops/` where they are faster, PyTorch elsewhere.

Each falls back to the plain version, which is always right, for what its loop does not take: gradients, other dtypes,
many rows (whose products oneDNN does best), matrices that do not lie one row behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minillm.ops import draw, grouped, paged, reference, state_space
from minillm.ops import recurrent as plain_recurrent
from minillm.ops import selective as plain_selective
from minillm.ops.cpu import fp8, loops, recurrent, selective, tiles, usable
from minillm.ops.cpu import matrices as products
from minillm.ops.cpu.arrays import LIKE, address
from minillm.ops.cpu.matrices import activation_number, here, plain
from minillm.ops.ones import ones
from minillm.ops.paged import Paged
from minillm.ops.visibility import Visibility
from minillm.spec import Gating, NormCast, RopeLayout, Ungated

TILE = tiles.TILE


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0, cast: NormCast = "before_weight"
) -> Tensor:
    """`reference.rms_norm`."""
    if not (x.numel() and plain(x, weight)):
        return reference.rms_norm(x, weight, eps, offset, cast)
    if weight is None:
        weight, offset = ones(x.shape[-1], x.dtype, x.device), 0.0
    return _normed(x, None, weight, eps, offset, cast)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: NormCast = "before_weight"
) -> tuple[Tensor, Tensor]:
    """`reference.add_rms_norm`."""
    if not (x.numel() and plain(x, residual, weight)):
        return reference.add_rms_norm(x, residual, weight, eps, offset, cast)
    return _normed(x, residual, weight, eps, offset, cast)


def _normed(x: Tensor, residual: Tensor | None, weight: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    y, s = torch.empty_like(x), x if residual is None else torch.empty_like(x)
    size = len(weight)
    at = [address(each) for each in (x, residual, s, weight, y)]
    loops.pointwise.rms_norm(*at, x.numel() // size, size, _norm_numbers(*numbers), LIKE[x.dtype])
    return y, s


def _norm_numbers(eps: float, offset: float, cast: NormCast) -> tuple[Any, Any, bool]:
    return np.float32(eps), np.float32(offset), cast == "before_weight"


def add(x: Tensor, y: Tensor) -> Tensor:
    """`reference.add`."""
    if not (products.few(x) and x.shape == y.shape and plain(x, y)):
        return x + y
    s = torch.empty_like(x)
    loops.pointwise.add(address(x), address(y), address(s), x.numel(), LIKE[x.dtype])
    return s


def cos_sin(positions: Tensor, rates: Tensor, factors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`reference.cos_sin`."""
    rows, steps, half = max(len(positions), len(rates)), positions.shape[1], rates.shape[-1]
    fits = rows * steps <= products.FEW_ROWS and positions.dim() == 2 and positions.is_contiguous() and here(positions)
    if not (fits and plain(rates, factors)):
        return reference.cos_sin(positions, rates, factors, dtype)
    cos, sin = rates.new_empty(2, rows, steps, half, dtype=dtype).unbind()
    at = tuple(address(each) for each in (positions, rates, factors, cos, sin))
    loops.pointwise.cos_sin(at, rows, steps, half, (len(positions) > 1, len(rates) > 1), LIKE[dtype])
    return cos, sin


def sample(logits_BV: Tensor, *settings: Tensor) -> Tensor:
    """`draw.sample`."""
    if not plain(logits_BV):
        return draw.sample(logits_BV, *settings)
    found_B = logits_BV.new_empty(len(logits_BV), dtype=torch.int64)
    loops.greedy.best(address(logits_BV), address(found_B), *logits_BV.shape, LIKE[logits_BV.dtype])
    return draw.drawn(_race, found_B, logits_BV, *settings)


def _race(chances_V: Tensor, seed: int, position: int, likeliest: Tensor) -> Tensor:
    """`draw.race`."""
    found = torch.empty_like(likeliest)
    loops.race.race(address(chances_V), address(found), len(chances_V), seed, position, int(likeliest))
    return found


def gated_act(gate_up: Tensor, activation: Gating | Ungated = "silu") -> Tensor:
    """`reference.gated_act`."""
    numbers = activation_number(activation)
    if not (numbers and gate_up.numel() and plain(gate_up)):
        return reference.gated_act(gate_up, activation)
    inner = gate_up.shape[-1] // 2
    y = gate_up.new_empty(*gate_up.shape[:-1], inner)
    loops.pointwise.gated_act(address(gate_up), address(y), y.numel() // inner, inner, numbers, LIKE[y.dtype])
    return y


def qk_norm_rope_cache(
    qkv: Tensor,
    num_heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: RopeLayout = "half",
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    cast: NormCast = "before_weight",
) -> Tensor:
    """`reference.qk_norm_rope_cache`."""
    given = (qkv, k_cache, v_cache, cos, sin, q_weight, k_weight)
    if not (plain(*given) and slots.is_contiguous() and here(slots)):
        rest = (layout, q_weight, k_weight, eps, offset, cast)
        return reference.qk_norm_rope_cache(qkv, num_heads, k_cache, v_cache, slots, cos, sin, *rest)
    batch, steps, _ = qkv.shape
    _, kv_heads, capacity, size = k_cache.shape
    q = qkv.new_empty(batch, steps, num_heads, size)
    at = tuple(address(each) for each in (qkv, q, k_cache, v_cache, slots, cos, sin, q_weight, k_weight))
    sizes = (steps, num_heads, kv_heads, size, capacity, cos.shape[-1], layout == "half")
    numbers = _norm_numbers(eps, offset, cast)
    loops.pointwise.qk_norm_rope_cache(at, batch, len(slots), len(cos), sizes, numbers, LIKE[qkv.dtype])
    return q.transpose(1, 2)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visibility,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """`reference.attention`; with slopes, what is added by distance, and over chosen keys, that itself."""
    if any(each is not None for each in (slopes, added, visible.chosen)):
        return reference.attention(q, k, v, visible, scale, softcap, sinks, slopes, added)
    rows = q.transpose(1, 2)
    rows = rows if rows.is_contiguous() else rows.contiguous()
    alike = q.dtype == k.dtype == v.dtype and here(k, v) and visible.device.type == "cpu"
    if alike and _slots(k) and _slots(v) and plain(rows, sinks):
        if few_queries(q):
            return _attend(rows, k, v, visible, scale, softcap, sinks)
        if (
            loops.dots.NATIVE_BF16
            and q.dtype == torch.bfloat16
            and sinks is None
            and not (q.shape[3] % 2 or v.shape[3] % 64)
        ):
            return _attend_prompt(rows, k, v, visible, scale, softcap)
    return reference.attention(q, k, v, visible, scale, softcap, sinks)


def latent_attention(
    q: Tensor, latent: Tensor, value_dim: int, visible: Visibility, scale: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`reference.latent_attention`."""
    keys = latent.unsqueeze(1)
    return attention(q, keys, keys[..., :value_dim], visible, scale, None, sinks)


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, pages: Paged, scale: float | None = None, softcap: float | None = None,
    sinks: Tensor | None = None, slopes: Tensor | None = None, added: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`paged.paged_attention`; with slopes, or what is added by distance, that itself."""
    if slopes is not None or added is not None:
        return paged.paged_attention(q, k, v, pages, scale, softcap, sinks, slopes, added)
    rows = q.transpose(1, 2).contiguous()
    alike = q.dtype == k.dtype == v.dtype and here(k, v, pages.tables) and pages.tables.is_contiguous()
    if not (q.shape[2] and alike and _slots(k) and _slots(v) and plain(rows, sinks)):
        return paged.paged_attention(q, k, v, pages, scale, softcap, sinks)
    _, count, heads, k_size = rows.shape
    y = rows.new_empty(1, count, heads, v.shape[-1])
    at = [address(each) for each in (rows, k, v, sinks, y, pages.first, pages.last, pages.tables)]
    sizes = (count, heads, k.shape[1], k_size, v.shape[-1], _slots(k), _slots(v), k.stride(2), v.stride(2))
    places = (0, 0, pages.size, pages.tables.shape[1], -(-pages.most // loops.attention.CHUNK))
    numbers = np.float32(k_size**-0.5 if scale is None else scale), np.float32(softcap or 0)
    loops.attention.attention(*at, 1, sizes, places, *numbers, LIKE[q.dtype])
    return y.transpose(1, 2)


def paged_latent_attention(
    q: Tensor, latent: Tensor, value_dim: int, pages: Paged, scale: float | None = None, sinks: Tensor | None = None
) -> Tensor:
    """`paged.paged_latent_attention`."""
    keys = latent.unsqueeze(1)
    return paged_attention(q, keys, keys[..., :value_dim], pages, scale, None, sinks)


def few_queries(q: Tensor) -> bool:
    return 0 < q.shape[2] <= products.FEW_ROWS and q.shape[0] > 0


def _slots(x: Tensor) -> int:
    """How many rows lie from one head of `[B, K, S, D]` to the next; 0 where that is no whole and constant number."""
    batch, heads, count, size = x.shape
    row, lane = x.stride(2), x.stride(1) if heads > 1 else x.stride(0) if batch > 1 else count * x.stride(2)
    whole = x.stride(3) == 1 and row >= size and lane % row == 0
    return lane // row if whole and (batch == 1 or heads == 1 or x.stride(0) == heads * lane) else 0


def _attend(
    q: Tensor, k: Tensor, v: Tensor, visible: Visibility, scale: float | None, softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, steps, heads, k_size = q.shape
    y = q.new_empty(batch, steps, heads, v.shape[-1])
    first, last = (each.expand(batch, steps).contiguous() for each in visible.spans)
    at = [address(each) for each in (q, k, v, sinks, y, first, last, None)]
    sizes = (steps, heads, k.shape[1], k_size, v.shape[-1], _slots(k), _slots(v), k.stride(2), v.stride(2))
    ring = visible.window if visible.ring else None
    places = (ring or 0, visible.first_key, 0, 0, -(-visible.most // loops.attention.CHUNK))
    numbers = np.float32(k_size**-0.5 if scale is None else scale), np.float32(softcap or 0)
    loops.attention.attention(*at, batch, sizes, places, *numbers, LIKE[q.dtype])
    return y.transpose(1, 2)


def _attend_prompt(
    q: Tensor, k: Tensor, v: Tensor, visible: Visibility, scale: float | None, softcap: float | None
) -> Tensor:
    batch, steps, heads, k_size = q.shape
    y = q.new_empty(batch, steps, heads, v.shape[-1])
    first, last = (each.expand(batch, steps).contiguous() for each in visible.spans)
    at = [address(each) for each in (q, k, v, y, first, last)]
    sizes = (steps, heads, k.shape[1], k_size, v.shape[-1], k.shape[2])
    strides = (_slots(k) * k.stride(2), _slots(v) * v.stride(2), k.stride(2), v.stride(2))
    numbers = np.float32(k_size**-0.5 if scale is None else scale), np.float32(softcap or 0)
    loops.prefill.attention(*at, batch, sizes, strides, visible.first_key, *numbers, LIKE[q.dtype])
    return y.transpose(1, 2)


@dataclass(frozen=True)
class Choice:
    """An op: the loop, or what it is in plain PyTorch where loops cannot run now. An object and no function of its own,
    so that a model which holds it can be pickled."""

    loop: Callable[..., Any]
    plainly: Callable[..., Any]

    def __call__(self, *given: Any, **named: Any) -> Any:
        if usable.loops():
            try:
                return self.loop(*given, **named)
            except usable.NotYet:
                pass
        return self.plainly(*given, **named)


OPS: dict[str, Any] = {
    "linear": Choice(products.linear, reference.linear),
    "rms_norm": Choice(rms_norm, reference.rms_norm),
    "add_rms_norm": Choice(add_rms_norm, reference.add_rms_norm),
    "add": Choice(add, reference.add),
    "cos_sin": Choice(cos_sin, reference.cos_sin),
    "qk_norm_rope_cache": Choice(qk_norm_rope_cache, reference.qk_norm_rope_cache),
    "gated_act": Choice(gated_act, reference.gated_act),
    "attention": Choice(attention, reference.attention),
    "latent_attention": Choice(latent_attention, reference.latent_attention),
    "paged_attention": Choice(paged_attention, paged.paged_attention),
    "paged_latent_attention": Choice(paged_latent_attention, paged.paged_latent_attention),
    "short_conv": Choice(recurrent.short_conv, plain_recurrent.short_conv),
    "delta_rule": Choice(recurrent.delta_rule, plain_recurrent.delta_rule),
    "delta_step": Choice(recurrent.delta_step, plain_recurrent.delta_step),
    "channel_rule": Choice(recurrent.channel_rule, plain_recurrent.channel_rule),
    "gated_conv_step": Choice(recurrent.gated_conv_step, plain_recurrent.gated_conv_step),
    "state_scan": Choice(recurrent.state_scan, state_space.scan),
    "state_step": Choice(recurrent.state_step, state_space.state_step),
    "short_conv_step": Choice(selective.short_conv_step, plain_recurrent.short_conv_step),
    "selective_scan": Choice(selective.selective_scan, plain_selective.selective_scan),
    "selective_step": Choice(selective.selective_step, plain_selective.selective_step),
    "gated_rms_norm": Choice(recurrent.gated_rms_norm, plain_recurrent.gated_rms_norm),
    "experts": Choice(tiles.experts, grouped.experts),
    "fp8_linear": Choice(fp8.fp8_linear, reference.fp8_linear),
    "grouped_linear": Choice(tiles.grouped_linear, reference.grouped_linear),
    "sample": Choice(sample, draw.sample),
}
