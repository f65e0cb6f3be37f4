"""Absorbed latent attention in Triton against the formula in fp64, contiguous and paged, in the interpreter.

Budgets as in test_kernel_attention.py; the largest seen over 120 draws was 1.6 in fp32 and 0.26 in fp16.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_attention import FAST, ULPS, drawn, formula, ulps
from torch import Tensor

from minillm import ops
from minillm.kernels import mla_decode as kernel
from minillm.kernels.mla_decode import mla_decode
from minillm.visibility import Visibility


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kind: empty(*shape, **kind).fill_(float("nan")))


def exactly(q: Tensor, latent: Tensor, rank: int, seen: Tensor, scale: float | None) -> Tensor:
    keys = latent.double()[:, None]
    return formula(q.double()[:, :, None], keys, keys[..., :rank], seen[:, None, None], scale)[:, :, 0]


@settings(max_examples=25, **FAST)
@given(st.data())
def test_as_drawn(data: st.DataObject) -> None:
    """Any sizes, lengths and paddings; the same positions scattered over pages of 7."""
    heads, rank, rotary = (data.draw(st.integers(1, most)) for most in (20, 40, 12))
    keys, dtype = data.draw(st.integers(1, 90)), data.draw(st.sampled_from((torch.float32, torch.float16)))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, keys), min_size=2, max_size=2)), dtype=torch.int32)
    first = torch.tensor(data.draw(st.lists(st.integers(0, keys), min_size=2, max_size=2)))
    scale = data.draw(st.none() | st.floats(0.05, 1.0))
    q, latent = drawn(dtype, (2, heads, rank + rotary), (2, keys, rank + rotary), seed=data.draw(st.integers(0, 9)))
    kernel.PROGRAMS, before = data.draw(st.integers(1, 60)), kernel.PROGRAMS
    try:
        found = mla_decode(q, latent, rank, lengths, first, None, scale)
        pages = -(-keys // 7)
        table = torch.randperm(2 * pages, generator=torch.Generator().manual_seed(0)).view(2, pages).int()
        cache = torch.full((2 * pages, 7, rank + rotary), float("nan"), dtype=dtype)
        for b, s in itertools.product(range(2), range(keys)):
            cache[table[b, s // 7], s % 7] = latent[b, s]
        paged = mla_decode(q, cache, rank, lengths, first, table, scale)
    finally:
        kernel.PROGRAMS = before
    positions = torch.arange(keys)
    seen = (positions < lengths[:, None]) & (positions >= first[:, None])
    expected = exactly(q, latent, rank, seen, scale)
    assert ulps(found, expected, latent) <= ULPS[dtype]
    assert ulps(paged, expected, latent) <= ULPS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_published_sizes(dtype: torch.dtype) -> None:
    q, latent = drawn(dtype, (1, 17, 576), (1, 70, 576))
    found = mla_decode(q, latent[:, 3:], 512, scale=192**-0.5)
    assert ulps(found, exactly(q, latent[:, 3:], 512, torch.ones(1, 67, dtype=torch.bool), 192**-0.5)) <= ULPS[dtype]


@pytest.mark.parametrize("count", [1, 3])
def test_behind_the_seam(count: int) -> None:
    q, latent = drawn(torch.float32, (2, 4, count, 24), (2, 30, 24))
    visible = Visibility(30 - count, count, None, torch.tensor([0, 11]), torch.device("cpu"))
    triton = ops.select("triton", torch.device("cpu"), torch.float32)
    expected = ops.REFERENCE.latent_attention(q, latent, 18, visible, 0.3)
    assert (triton.latent_attention(q, latent, 18, visible, 0.3) - expected).abs().max() <= 5e-6


ONE, LATENT, TABLE = torch.ones(1, 2, 8), torch.ones(1, 5, 8), torch.zeros(1, 2, dtype=torch.int32)
REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "width": (lambda: mla_decode(ONE, torch.ones(1, 5, 9), 6), "do not fit"),
    "no rotary part": (lambda: mla_decode(ONE, LATENT, 8), "8 values do not fit"),
    "batch": (lambda: mla_decode(ONE, torch.ones(2, 5, 8), 6), "1 queries for 2 sequences"),
    "stride": (lambda: mla_decode(torch.ones(1, 8, 2).mT, LATENT, 6), "q has stride 2"),
    "dtype": (lambda: mla_decode(ONE.half(), LATENT, 6), "latent is torch.float32"),
    "lengths": (lambda: mla_decode(ONE, LATENT, 6, torch.ones(2, dtype=torch.int32)), "lengths is torch.int32 .2."),
    "table": (lambda: mla_decode(ONE, LATENT, 6, block_table=TABLE.long()), "block_table is torch.int64"),
    "pages": (lambda: mla_decode(ONE, LATENT, 6, block_table=TABLE), "needs lengths"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing() -> None:
    assert mla_decode(torch.ones(0, 2, 8), torch.ones(0, 5, 8), 6).shape == (0, 2, 6)
