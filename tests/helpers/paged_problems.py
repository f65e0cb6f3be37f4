"""Problems for attention over keys in blocks; see `kernel_problems.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.ops import Ops
from minillm.ops.paged import Paged
from tests.helpers.attention_problems import attended
from tests.helpers.kernel_cases import Case, Errors, exact, ulps

BLOCKS = 40


def drawn(case: Case) -> tuple[Paged, Tensor, Tensor]:
    """Three sequences in blocks of one memory, as they come to lie; which slots are theirs, `[3, S]`, and which of them
    each query sees. What a window has left behind is nowhere."""
    size, longest, window = case.of((5, 16)), case.size(170), case.of((None, 1, case.size(60)))
    positions = torch.tensor([longest - 1, case.below(longest), 0])
    width = -(-longest // size) + case.below(2)
    tables = torch.randperm(BLOCKS * 5, generator=case.generator)[: 3 * width].view(3, width).int()
    made = Paged.at(positions, tables, size, window)
    at = torch.arange(width * size).expand(3, -1)
    slots, seen = made.slots(at), (at >= made.first[:, None]) & (at <= positions[:, None])
    tables[torch.arange(width) < made.first[:, None] // size] = -1
    return Paged.at(case.on(positions), case.on(tables), size, window), slots, seen


def memory(case: Case, size: int, slots: Tensor, seen: Tensor, heads: int, dim: int) -> tuple[Tensor, Tensor]:
    """Values `[1, heads, slots, dim]` in all of memory, NaN where nobody looks; and those of each sequence,
    `[3, heads, S, dim]`."""
    values = case.values(3, heads, slots.shape[1], dim)
    whole = torch.full((heads, BLOCKS * 5 * size, dim), float("nan"), dtype=values.dtype)
    for each, at, mine in zip(values.cpu(), slots, seen, strict=True):
        whole[:, at[mine]] = each[:, mine]
    return case.on(whole[None]), values


@torch.no_grad()
def paged_attention(case: Case, ops: Ops) -> Errors:
    kv_heads, dim, value_dim = case.size(2), case.size(129), case.size(129)
    heads, scale, cap = kv_heads * case.size(3), case.of((None, 0.3)), case.of((None, None, 1.5, 1e4))
    paged, slots, seen = drawn(case)
    q, sinks = case.values(1, 3, heads, dim).transpose(1, 2), case.values(heads) if case.maybe() else None
    (keys, k), (values, v) = (memory(case, paged.size, slots, seen, kv_heads, each) for each in (dim, value_dim))
    found = ops.paged_attention(q, keys, values, paged, scale, cap, sinks)
    q64, k64, v64, *sinks64 = exact(q[0].transpose(0, 1)[:, :, None], k, v, *([] if sinks is None else [sinks]))
    how = seen[:, None, None], scale, cap, *sinks64
    expected, terms = (attended(q64, k64, each, *how) for each in (v64, v64.abs()))
    return {"result": ulps(found, expected[:, :, 0].transpose(0, 1)[None], terms[:, :, 0].transpose(0, 1)[None])}


@torch.no_grad()
def paged_latent_attention(case: Case, ops: Ops) -> Errors:
    heads, rank, rotary, scale = case.size(20), case.size(129), case.size(64), case.of((None, 0.1))
    paged, slots, seen = drawn(case)
    q = case.values(1, 3, heads, rank + rotary).transpose(1, 2)
    latent, keys = memory(case, paged.size, slots, seen, 1, rank + rotary)
    sinks = case.values(heads) if case.maybe() else None
    found = ops.paged_latent_attention(q, latent[:, 0], rank, paged, scale, sinks)
    q64, k64, *sinks64 = exact(q[0].transpose(0, 1)[:, :, None], keys, *([] if sinks is None else [sinks]))
    expected = attended(q64, k64, k64[..., :rank], seen[:, None, None], scale, None, *sinks64)
    return {"result": ulps(found, expected[:, :, 0].transpose(0, 1)[None], k64[..., :rank].abs().amax())}
