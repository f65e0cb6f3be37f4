"""Attention in Triton, beyond `test_kernels.py`: each feature by itself, sequences of several lengths in one batch or
one behind the other, pages, and what is refused; in the interpreter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.kernels import attention as kernel
from minillm.kernels import decode_attention as decode
from tests.conftest import FAST
from tests.helpers.attention_problems import BESIDE, attended
from tests.helpers.kernel_cases import Awkward, Case, exact, ulps
from tests.helpers.kernel_problems import BUDGETS, hold

DTYPES = [torch.float32, torch.float16]


pytestmark = pytest.mark.usefixtures("small_kernels")


def visible(queries: int, past: int, window: int | None = None) -> Tensor:
    at, keys = torch.arange(past, past + queries)[:, None], torch.arange(past + queries)[None]
    seen = keys <= at
    return seen if window is None else seen & (keys > at - window)


def drawn(dtype: torch.dtype, *shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made).to(dtype) for shape in shapes]


# heads, kv heads, queries, past, head size, value size, window, softcap, sinks
CASES: dict[str, tuple[int, int, int, int, int, int, int | None, float | None, bool]] = {
    "one": (1, 1, 1, 0, 1, 1, None, None, False),
    "grouped": (6, 2, 37, 0, 8, 8, None, None, False),
    "behind a past": (3, 1, 20, 13, 24, 12, None, None, False),
    "window": (2, 2, 50, 0, 16, 16, 5, None, False),
    "window of one": (2, 1, 33, 4, 16, 16, 1, None, False),
    "window behind a past": (2, 2, 18, 40, 20, 20, 30, None, False),
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
    doubles, seen = exact(q, k, v), visible(queries, past, window)
    expected = attended(*doubles, seen, None, cap, *exact(sinks))
    assert found.dtype == dtype
    terms = attended(*doubles[:2], doubles[2].abs(), seen, None, cap)
    assert ulps(found, expected, terms) <= BUDGETS["attention"]["result"][dtype != torch.float32]


def test_no_block_outside_the_window_is_read() -> None:
    """Keys that no query sees are NaN: a product with them, even with weight zero, would show."""
    q, k, v = drawn(torch.float32, (1, 1, 16, 16), (1, 1, 96, 16), (1, 1, 96, 16))
    expected, _ = kernel.attention(q, k, v, 80, 8)
    k[:, :, :64], v[:, :, :64] = float("nan"), float("nan")
    found, _ = kernel.attention(q, k, v, 80, 8)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kernel", BESIDE)
def test_beside_the_seam(kernel: str, seed: int) -> None:
    """Ragged prefill, and decoding with lengths, contiguous and paged."""
    dtype = DTYPES[seed % 2]
    hold("attention", BESIDE[kernel](Case(Awkward(seed), dtype, torch.device("cpu"))), dtype)


@settings(max_examples=10, **FAST)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4))
def test_ragged_is_each_alone(lengths: list[tuple[int, int]]) -> None:
    """To the bit: queries and what each sequence has before them, without anything between."""
    ends_q, ends_k = (
        torch.tensor([0, *itertools.accumulate(each)], dtype=torch.int32)
        for each in (tuple(n for n, _ in lengths), tuple(n + past for n, past in lengths))
    )
    q, k, v = drawn(torch.float32, (int(ends_q[-1]), 4, 8), (int(ends_k[-1]), 2, 8), (int(ends_k[-1]), 2, 12))
    found = kernel.ragged_attention(q, k, v, ends_q, ends_k, max(n for n, _ in lengths), 9)
    for b, (count, past) in enumerate(lengths):
        rows, cols = slice(int(ends_q[b]), int(ends_q[b + 1])), slice(int(ends_k[b]), int(ends_k[b + 1]))
        if count:
            alone, _ = kernel.attention(*(each.transpose(0, 1)[None] for each in (q[rows], k[cols], v[cols])), past, 9)
            assert torch.equal(found[rows], alone[0].transpose(0, 1))


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
    "ring of pages": (
        lambda: decode.decode_attention(
            torch.ones(1, 2, 8), *(torch.ones(4, 5, 2, 8),) * 2, torch.ones(1).int(), ring=4,
            block_table=torch.zeros(1, 2).int(),
        ),
        "a ring of 4 slots on pages",
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
