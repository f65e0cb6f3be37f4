"""Attention kernels against the formula in fp64, in the interpreter: prefill, ragged, decode, paged, and gradients.

Budgets are in units of the last place of the type at the largest value expected. The largest seen over 120 draws: fp32
4.9, of a gradient 20.7 (sums that cancel); fp16, where rounding the result costs half a unit, 0.42 and 0.65.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm import ops
from minillm.kernels import attention as kernel
from minillm.kernels import decode_attention as decode
from minillm.kernels.attention_backward import differentiable_attention
from minillm.visibility import Visibility

DTYPES = [torch.float32, torch.float16]
ULPS, GRADIENT_ULPS = (dict(zip(DTYPES, each, strict=True)) for each in ((10.0, 1.0), (45.0, 1.5)))
FAST = {"phases": [Phase.explicit, Phase.reuse, Phase.generate]}  # the interpreter is too slow to shrink a failure


def budget(dtype: torch.dtype, cap: float | None) -> float:
    """In fp32 a cap of c costs c units more: tanh is made of a sigmoid, to within a unit of 1."""
    return ULPS[dtype] + (cap or 0.0) * (dtype == torch.float32)


@pytest.fixture(autouse=True)
def small_blocks_and_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks at sizes that the interpreter can bear; and torch.empty gives NaN in every place."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kind: empty(*shape, **kind).fill_(float("nan")))
    for table in (kernel.CONFIGS, kernel.BACKWARD, kernel.FP32):
        for size in table:
            monkeypatch.setitem(table, size, (16, 16, 4, 2))
    monkeypatch.setattr(decode, "CONFIG", (16, 4, 2))


def formula(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float | None = None, softcap: float | None = None,
            sinks: Tensor | None = None) -> Tensor:  # fmt: skip
    """Score by score; `seen` broadcasts to `[B, H, T, S]`."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)), dim=-1)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return weights[..., : k.shape[2]] @ v


def visible(queries: int, past: int, window: int | None = None, first: Tensor | None = None) -> Tensor:
    at, keys = torch.arange(past, past + queries)[:, None], torch.arange(past + queries)[None]
    seen = keys <= at
    if window is not None:
        seen = seen & (keys > at - window)
    return seen if first is None else (seen & (keys >= first[:, None, None, None])) | (keys == at)


def ulps(found: Tensor, expected: Tensor, terms: Tensor | None = None) -> float:
    """In units at the largest of what was summed to the result, which may cancel: by default the result itself."""
    unit = torch.finfo(found.dtype).eps * max(float((expected if terms is None else terms).abs().max()), 0.1)
    return float((found.double() - expected).abs().max()) / unit


def drawn(dtype: torch.dtype, *shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made).to(dtype) for shape in shapes]


def doubles(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


# heads, kv heads, queries, past, head size, value size, window, softcap, sinks
CASES: dict[str, tuple[int, int, int, int, int, int, int | None, float | None, bool]] = {
    "one": (1, 1, 1, 0, 1, 1, None, None, False),
    "grouped": (6, 2, 37, 0, 8, 8, None, None, False),
    "behind a past": (3, 1, 20, 13, 24, 12, None, None, False),
    "window": (2, 2, 50, 0, 16, 16, 5, None, False),
    "window of one": (2, 1, 33, 4, 16, 16, 1, None, False),
    "window behind a past": (2, 2, 18, 40, 20, 20, 17, None, False),
    "cap": (2, 1, 19, 3, 64, 64, None, 1.5, False),
    "sinks": (4, 2, 17, 0, 16, 16, None, None, True),
    "all": (4, 2, 35, 9, 12, 20, 7, 2.0, True),
    "127": (1, 1, 127, 0, 3, 3, None, None, False),
    "129 of 256": (1, 1, 3, 126, 256, 200, None, None, False),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_prefill(case: str, dtype: torch.dtype) -> None:
    heads, kv_heads, queries, past, dim, value_dim, window, cap, sinking = CASES[case]
    keys = past + queries
    past_and_new = (2, kv_heads, keys, dim), (2, kv_heads, keys, value_dim)
    q, k, v, sinks = drawn(dtype, (2, heads, queries, dim), *past_and_new, (heads,))
    sinks = sinks if sinking else None
    found, _ = kernel.attention(q, k, v, past, window, softcap=cap, sinks=sinks)
    exact = doubles(q, k, v)
    expected = formula(*exact, visible(queries, past, window), None, cap, None if sinks is None else sinks.double())
    assert found.dtype == dtype
    terms = formula(*exact[:2], exact[2].abs(), visible(queries, past, window), None, cap)
    assert ulps(found, expected, terms) <= budget(dtype, cap)


@st.composite
def problems(draw: st.DrawFn, longest: int = 40) -> dict[str, Any]:
    kv_heads, queries, past = draw(st.integers(1, 2)), draw(st.integers(1, longest)), draw(st.integers(0, 30))
    return {
        "heads": kv_heads * draw(st.integers(1, 3)),
        "kv_heads": kv_heads,
        "queries": queries,
        "past": past,
        "dim": draw(st.integers(1, 40)),
        "value_dim": draw(st.integers(1, 40)),
        "window": draw(st.none() | st.integers(1, 60)),
        "scale": draw(st.none() | st.floats(0.05, 1.0)),
        "cap": draw(st.none() | st.floats(0.5, 20.0)),
        "sinking": draw(st.booleans()),
        "padding": draw(st.none() | st.lists(st.integers(0, past + queries - 1), min_size=2, max_size=2)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "seed": draw(st.integers(0, 99)),
    }


def inputs(p: dict[str, Any]) -> list[Tensor]:
    keys = p["past"] + p["queries"]
    shapes = (2, p["heads"], p["queries"], p["dim"]), (2, p["kv_heads"], keys, p["dim"])
    return drawn(p["dtype"], *shapes, (2, p["kv_heads"], keys, p["value_dim"]), (p["heads"],), seed=p["seed"])


@settings(max_examples=25, **FAST)
@given(problems())
def test_prefill_and_gradients_as_drawn(p: dict[str, Any]) -> None:
    q, k, v, sinks = (each.requires_grad_() for each in inputs(p))
    first = None if p["padding"] is None else torch.tensor(p["padding"])
    wanted, options = [q, k, v, *([sinks] if p["sinking"] else [])], (p["scale"], p["cap"])
    given_ = (p["past"], p["window"], first, 0, *options, sinks if p["sinking"] else None)
    found = differentiable_attention(q, k, v, *given_)
    exact = [each.detach().double().requires_grad_() for each in wanted]
    seen = visible(p["queries"], p["past"], p["window"], first)
    expected = formula(*exact[:3], seen, *options, exact[3] if p["sinking"] else None)
    terms = formula(*exact[:2], exact[2].abs(), seen, *options).detach()
    assert ulps(found.detach(), expected.detach(), terms) <= budget(p["dtype"], p["cap"])
    (gradient,) = drawn(p["dtype"], tuple(found.shape), seed=1)
    ours = torch.autograd.grad(found, wanted, gradient)
    theirs = torch.autograd.grad(expected, exact, gradient.double())
    for one, other in zip(ours, theirs, strict=True):
        assert ulps(one, other) <= GRADIENT_ULPS[p["dtype"]]


def test_no_block_outside_the_window_is_read() -> None:
    """Keys that no query sees are NaN: a product with them, even with weight zero, would show."""
    q, k, v = drawn(torch.float32, (1, 1, 16, 16), (1, 1, 96, 16), (1, 1, 96, 16))
    expected, _ = kernel.attention(q, k, v, 80, 8)
    k[:, :, :64], v[:, :, :64] = float("nan"), float("nan")
    found, _ = kernel.attention(q, k, v, 80, 8)
    assert torch.equal(found, expected)


@settings(max_examples=15, **FAST)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4), problems())
def test_ragged_is_each_alone(lengths: list[tuple[int, int]], p: dict[str, Any]) -> None:
    """Queries and what each sequence has before them; without anything between."""
    ends_q, ends_k = (torch.tensor([0, *itertools.accumulate(each)], dtype=torch.int32)
                      for each in (tuple(n for n, _ in lengths), tuple(n + past for n, past in lengths)))  # fmt: skip
    q, k, v, sinks = drawn(p["dtype"], (int(ends_q[-1]), p["heads"], p["dim"]),
                           (int(ends_k[-1]), p["kv_heads"], p["dim"]), (int(ends_k[-1]), p["kv_heads"], p["value_dim"]),
                           (p["heads"],))  # fmt: skip
    options = {"scale": p["scale"], "softcap": p["cap"], "sinks": sinks if p["sinking"] else None}
    longest = max(n for n, _ in lengths)
    found = kernel.ragged_attention(q, k, v, ends_q, ends_k, longest, p["window"], **options)
    for b, (count, past) in enumerate(lengths):
        rows, cols = slice(int(ends_q[b]), int(ends_q[b + 1])), slice(int(ends_k[b]), int(ends_k[b + 1]))
        alone = [each.transpose(0, 1)[None] for each in (q[rows], k[cols], v[cols])]
        if count:
            expected, _ = kernel.attention(*alone, past, p["window"], **options)
            assert torch.equal(found[rows], expected[0].transpose(0, 1))


@settings(max_examples=25, **FAST)
@given(problems(longest=1), st.integers(1, 80))
def test_decode_as_drawn(p: dict[str, Any], splits: int) -> None:
    """Contiguous with lengths, and the same keys scattered over pages of 5."""
    p["past"] += 20
    q, k, v, sinks = inputs(p)
    keys = p["past"] + 1
    lengths = torch.tensor([keys, 1 + p["seed"] % keys], dtype=torch.int32)
    first = None if p["padding"] is None else torch.tensor(p["padding"])
    options = {"scale": p["scale"], "softcap": p["cap"], "sinks": sinks if p["sinking"] else None}
    programs = decode.PROGRAMS
    decode.PROGRAMS = splits
    try:
        found = decode.decode_attention(q[:, :, 0], k, v, lengths, first, p["window"], **options)
        pages = -(-keys // 5)
        table = torch.randperm(2 * pages, generator=torch.Generator().manual_seed(0)).view(2, pages).int()
        paged = [torch.full((2 * pages, 5, *each.shape[1::2]), float("nan"), dtype=each.dtype) for each in (k, v)]
        for cache, each in zip(paged, (k, v), strict=True):
            for b, s in itertools.product(range(2), range(keys)):
                cache[table[b, s // 5], s % 5] = each[b, :, s]
        scattered = decode.decode_attention(
            q[:, :, 0], *paged, lengths, first, p["window"], block_table=table, **options
        )
    finally:
        decode.PROGRAMS = programs
    positions = torch.arange(keys)
    seen = positions < lengths[:, None]
    if p["window"] is not None:
        seen &= positions >= lengths[:, None] - p["window"]
    if first is not None:
        seen &= positions >= first[:, None]
    exact = doubles(q, k, v)
    expected = formula(*exact, seen[:, None, None], p["scale"], p["cap"], sinks.double() if p["sinking"] else None)
    terms = formula(*exact[:2], exact[2].abs(), seen[:, None, None], p["scale"], p["cap"])
    for each in (found, scattered):
        assert ulps(each, expected[:, :, 0], terms) <= budget(p["dtype"], p["cap"])


@settings(max_examples=25, **FAST)
@given(problems(), st.booleans(), st.integers(0, 3))
def test_behind_the_seam(p: dict[str, Any], one: bool, extra: int) -> None:
    """What the model calls: prefill and decode by what is visible, against the reference on the same."""
    triton = ops.select("triton", torch.device("cpu"), torch.float32)
    p["dtype"] = torch.float32
    p["queries"] = 1 if one else p["queries"]
    end, window = p["past"] + p["queries"], p["window"]
    padding = None if p["padding"] is None else torch.tensor(p["padding"]).clamp(max=end - 1)
    window = window if window is not None and window < end + extra else None  # as for a cache of that capacity
    visibility = Visibility(p["past"], p["queries"], window, padding, torch.device("cpu"))
    p["past"] = len(visibility.key_positions) - p["queries"]
    q, k, v, sinks = inputs(p)
    options = (p["scale"], p["cap"], sinks if p["sinking"] else None)
    expected = ops.REFERENCE.attention(q, k, v, visibility, *options)
    assert (triton.attention(q, k, v, visibility, *options) - expected).abs().max() <= 5e-6


def test_strides_and_nothing() -> None:
    q, k, v = drawn(torch.float32, (2, 9, 4, 16), (2, 9, 2, 16), (2, 9, 2, 16))
    views = [each.transpose(1, 2) for each in (q, k, v)]
    copies = [each.contiguous() for each in views]
    assert torch.equal(kernel.attention(*views)[0], kernel.attention(*copies)[0])
    assert torch.equal(decode.decode_attention(views[0][:, :, 3], *views[1:]),
                       decode.decode_attention(copies[0][:, :, 3].contiguous(), *copies[1:]))  # fmt: skip
    assert kernel.attention(views[0][:0], views[1][:0], views[2][:0])[0].shape == (0, 4, 9, 16)
    assert kernel.attention(views[0][:, :, :0], *views[1:])[0].shape == (2, 4, 0, 16)
    nothing = torch.zeros(2, dtype=torch.int32)
    assert torch.equal(decode.decode_attention(views[0][:, :, 0], *views[1:], nothing), torch.zeros(2, 4, 16))


def make(heads: int = 4, dim: int = 8, queries: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones(1, heads, queries, dim), torch.ones(1, 2, 5, 8), torch.ones(1, 2, 5, 8)


FAR = torch.empty_strided((1, 1, 9, 1), (0, 0, 2**29, 1), device="meta")
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "sizes": (lambda: kernel.attention(*make(dim=9)), "do not fit"),
    "heads": (lambda: kernel.attention(*make(heads=3)), "3 query heads are no multiple of 2"),
    "past": (lambda: kernel.attention(*make(), past=3), "past is 3; 3 queries behind it need 6 of 5 keys"),
    "stride": (lambda: kernel.attention(torch.ones(1, 4, 8, 3).mT, *make()[1:]), "q has stride 3"),
    "dtype": (lambda: kernel.attention(make()[0].half(), *make()[1:]), "k is torch.float32 on cpu, q torch.float16"),
    "wide": (lambda: kernel.attention(*(torch.ones(1, 1, 1, 300),) * 3), "heads of 300 values; the limit is 256"),
    "far apart": (lambda: kernel.attention(FAR, FAR, FAR), "9 rows 536870912 values apart"),
    "sinks": (lambda: kernel.attention(*make(), sinks=torch.ones(3)), r"sinks are \[3\]"),
    "ends": (
        lambda: kernel.ragged_attention(*(torch.ones(3, 1, 4),) * 3, torch.tensor([0, 3]), torch.tensor([0, 3]), 3),
        "ends are torch.int64",
    ),
    "lengths": (
        lambda: decode.decode_attention(make()[0][:, :, 0], *make()[1:], torch.ones(1)),
        "lengths is torch.float",
    ),
    "pages": (
        lambda: decode.decode_attention(
            torch.ones(1, 2, 8), *(torch.ones(4, 5, 2, 8),) * 2, block_table=torch.zeros(1, 2, dtype=torch.int32)
        ),
        "needs lengths",
    ),
    "table": (
        lambda: decode.decode_attention(
            torch.ones(1, 2, 8), *(torch.ones(4, 5, 2, 8),) * 2, block_table=torch.zeros(1, 2, dtype=torch.int64)
        ),
        "block_table is torch.int64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
