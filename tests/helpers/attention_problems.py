"""Problems for the kernels of attention; see `kernel_problems.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm import kernels
from minillm.ops import Ops
from minillm.ops.visibility import Visibility
from tests.helpers.kernel_cases import Case, Errors, exact, ulps, with_gradients


def visible_keys(v: Visibility) -> Tensor:
    """Which keys each query sees, bool `[B or 1, 1, T, S]`, by its definition."""
    keys, queries = v.key_positions.cpu(), torch.arange(v.start, v.start + v.count)[:, None]
    if v.position_B is not None:
        queries = v.position_B.cpu().view(-1, 1, 1, 1)
    seen = (keys >= 0) & (keys <= queries)
    if v.window is not None:
        seen = seen & (keys > queries - v.window)
    if v.padding_B is not None:
        return (seen & (keys >= v.padding_B.cpu()[:, None, None, None])) | (keys == queries)
    return seen if seen.dim() == 4 else seen[None, None]


def shares(q: Tensor, k: Tensor, seen: Tensor, scale: float | None = None, softcap: float | None = None,
           sinks: Tensor | None = None) -> Tensor:  # fmt: skip
    """What each query takes of each key, `[B, H, T, S]`, score by score; `seen` broadcasts to that."""
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT * (scale or q.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)), dim=-1)
    return scores.softmax(-1).nan_to_num(0.0)[..., : k.shape[2]]


def attended(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Tensor:
    return shares(q, k, *rest, **named) @ v.repeat_interleave(q.shape[1] // k.shape[1], dim=1)


def window_of(case: Case, end: int) -> Visibility:
    """Queries behind a past, perhaps with a window or left padding, as a cache of a capacity a little larger has it; a
    single one perhaps where only the device knows, its cache as large as the past."""
    count, window = case.of((1, case.size(129))), case.of((None, None, 1, case.size(60)))
    ends = [case.below(end + 1) for _ in range(2)] if count == 1 and case.maybe() else None
    padding = [case.below(count + least) for least in ends or (end, end)] if case.maybe() else None
    return Visibility(
        end, count, window if window and window < end + count + case.size(3) else None,
        case.on(torch.tensor(padding)) if padding else None, case.device,
        case.on(torch.tensor(ends)) if ends else None,
    )  # fmt: skip


def attention(case: Case, ops: Ops) -> Errors:
    kv_heads, dim, value_dim = case.size(2), case.size(129), case.size(129)
    v, heads = window_of(case, case.of((0, case.size(129)))), kv_heads * case.size(3)
    keys, scale, cap = v.key_positions.shape[-1], case.of((None, 0.3)), case.of((None, None, 1.5, 20.0, 1e4))
    q, k = case.values(2, v.count, heads, dim).transpose(1, 2), case.values(2, kv_heads, keys + 2, dim)[:, :, 1:-1]
    inputs = [q, k, case.values(2, kv_heads, keys, value_dim), *([case.values(heads)] if case.maybe() else [])]
    seen = visible_keys(v)

    def run(q: Tensor, k: Tensor, values: Tensor, sinks: Tensor | None = None) -> Tensor:
        return ops.attention(q, k, values, v, scale, cap, sinks)

    def formula(q: Tensor, k: Tensor, values: Tensor, sinks: Tensor | None = None) -> Tensor:
        return attended(q, k, values, seen, scale, cap, sinks)

    def terms(q: Tensor, k: Tensor, values: Tensor, *rest: Tensor) -> dict[Any, Tensor]:
        """Of the result p |v|; of the gradients of q and k, where p (g v - g o) cancels, both apart."""
        p, wide = shares(q, k, seen, scale, cap), values.abs().repeat_interleave(heads // kv_heads, dim=1)
        g, keys = rest[-1].abs(), k.abs().repeat_interleave(heads // kv_heads, dim=1)
        ds = p * (g @ wide.mT + (g * (p @ wide)).sum(-1, keepdim=True)) * (scale or dim**-0.5)
        dk = (ds.mT @ q.abs()).unflatten(1, (kv_heads, -1)).sum(2)
        return {"result": p @ wide, 0: ds @ keys, 1: dk}

    with torch.no_grad():
        doubles = exact(*inputs)
        most = attended(*doubles[:2], doubles[2].abs(), seen, scale, cap)
        errors = {"alone": ulps(run(*inputs), formula(*doubles), most)}
    if v.ring or v.position_B is not None or case.maybe():  # only a prompt, in its order of keys, has gradients
        return errors
    return {**with_gradients(case, inputs, run, formula, terms), **errors}


@torch.no_grad()
def latent_attention(case: Case, ops: Ops) -> Errors:
    heads, rank, rotary, past = case.size(20), case.size(129), case.size(64), case.size(129) - 1
    ends = [case.below(past + 1) for _ in range(2)] if case.maybe() else None
    padding = case.on(torch.tensor([case.below(end + 1) for end in ends or (past, past)])) if case.maybe() else None
    v = Visibility(past, 1, None, padding, case.device, case.on(torch.tensor(ends)) if ends else None)
    q, latent = case.values(2, heads, 1, rank + rotary), case.values(2, past + 3, rank + rotary)[:, 1 : past + 2]
    scale, sinks = case.of((None, 0.1)), case.values(heads) if case.maybe() else None
    found = ops.latent_attention(q, latent, rank, v, scale, sinks)
    q64, keys, *sinks64 = exact(q, latent.unsqueeze(1), *([] if sinks is None else [sinks]))
    expected = attended(q64, keys, keys[..., :rank], visible_keys(v), scale, None, *sinks64)
    return {"result": ulps(found, expected, latent.cpu())}


def several(case: Case, keys: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """How many keys each of two sequences has, perhaps with padding before, and what its one query sees: `[B, S]`."""
    lengths = torch.tensor([keys, case.below(keys) + 1], dtype=torch.int32)
    first = torch.tensor([case.below(keys), 0]) if case.maybe() else None
    seen = torch.arange(keys) < lengths[:, None]
    if first is not None:
        seen &= torch.arange(keys) >= first[:, None]
    return case.on(lengths), first if first is None else case.on(first), seen


def on_both(case: Case, caches: list[Tensor], run: Callable[..., Tensor], expected: Tensor, terms: Tensor) -> Errors:
    """Errors over contiguous caches `[B, S, ...]` and over the same positions on pages."""
    page, (batch, keys) = case.of((5, 16)), caches[0].shape[:2]
    pages = -(-keys // page)
    table = torch.randperm(batch * pages, generator=case.generator).view(batch, pages)
    paged = []
    for cache in caches:
        whole = torch.full((batch, pages * page, *cache.shape[2:]), float("nan"), dtype=cache.dtype)
        whole[:, :keys] = cache.cpu()
        scattered = torch.empty((batch * pages, page, *cache.shape[2:]), dtype=cache.dtype)
        scattered[table.flatten()] = whole.unflatten(1, (pages, page)).flatten(0, 1)
        paged.append(case.on(scattered))
    return {
        "contiguous": ulps(run(caches, None), expected, terms),
        "paged": ulps(run(paged, case.on(table.int())), expected, terms),
    }


@torch.no_grad()
def decode(case: Case) -> Errors:
    """One query for each of two sequences of different lengths, with all that scores may have."""
    kv_heads, dim, value_dim, keys = case.size(2), case.size(129), case.size(129), case.size(300)
    heads, window = kv_heads * case.size(33), case.of((None, 1, case.size(60)))
    q, sinks = case.values(2, heads, dim), case.values(heads) if case.maybe() else None
    caches = [case.values(2, keys, kv_heads, each) for each in (dim, value_dim)]
    lengths, first, seen = several(case, keys)
    if window is not None:
        seen &= torch.arange(keys) >= lengths.cpu()[:, None] - window
    cap = case.of((None, 2.0, 1e4))

    def run(given: list[Tensor], table: Tensor | None) -> Tensor:
        k, v = given if table is not None else [each.transpose(1, 2) for each in given]
        return kernels.decode_attention.decode_attention(
            q, k, v, lengths, first, window, block_table=table, softcap=cap, sinks=sinks
        )

    q64, k64, v64 = exact(q[:, :, None], *(each.transpose(1, 2) for each in caches))
    expected = attended(q64, k64, v64, seen[:, None, None], None, cap, *exact(sinks))[:, :, 0]
    terms = attended(q64, k64, v64.abs(), seen[:, None, None], None, cap)
    return on_both(case, caches, run, expected, terms)


@torch.no_grad()
def latent_decode(case: Case) -> Errors:
    heads, rank, rotary, keys = case.size(20), case.size(129), case.size(64), case.size(200)
    q, latent = case.values(2, heads, rank + rotary), case.values(2, keys, rank + rotary)
    lengths, first, seen = several(case, keys)

    def run(given: list[Tensor], table: Tensor | None) -> Tensor:
        return kernels.mla_decode.mla_decode(q, given[0], rank, lengths, first, table, 0.1)

    q64, c64 = exact(q[:, :, None], latent[:, None])
    expected = attended(q64, c64, c64[..., :rank], seen[:, None, None], 0.1)[:, :, 0]
    return on_both(case, [latent], run, expected, latent.cpu())


@torch.no_grad()
def ragged(case: Case) -> Errors:
    """Prompts one behind the other, some without a query, each behind a past of its own."""
    counts, pasts = ([case.size(129) - 1 for _ in range(3)] for _ in range(2))
    counts[0] += 1
    ends = [[0, *itertools.accumulate(each)] for each in (counts, [n + p for n, p in zip(counts, pasts, strict=True)])]
    dim, value_dim, window, cap = case.size(129), case.size(129), case.of((None, 7)), case.of((None, 2.0, 1e4))
    q = case.values(ends[0][-1], 4, dim)
    k, v = case.values(ends[1][-1], 2, dim), case.values(ends[1][-1], 2, value_dim)
    at = [case.on(torch.tensor(each, dtype=torch.int32)) for each in ends]
    found = kernels.attention.ragged_attention(q, k, v, *at, max(counts), window, softcap=cap)
    errors = {}
    for b, (count, past) in enumerate(zip(counts, pasts, strict=True)):
        if count:
            rows, columns = slice(*ends[0][b : b + 2]), slice(*ends[1][b : b + 2])
            q64, k64, v64 = (each.transpose(0, 1)[None] for each in exact(q[rows], k[columns], v[columns]))
            seen = visible_keys(Visibility(past, count, None, None, case.device))
            if window:
                seen = seen & (torch.arange(past + count) > torch.arange(past, past + count)[:, None] - window)
            terms = attended(q64, k64, v64.abs(), seen, None, cap)
            errors[f"sequence {b}"] = ulps(
                found[rows].transpose(0, 1)[None], attended(q64, k64, v64, seen, None, cap), terms
            )
    return errors


# Kernels that stand beside `Ops`, for what an engine will ask of them.
BESIDE: dict[str, Callable[[Case], Errors]] = {"decode": decode, "latent_decode": latent_decode, "ragged": ragged}
