"""Chunked attention: what a query sees is computed by the definition, whichever way positions are put to the ops."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.ops import CPU, REFERENCE
from minillm.ops.paged import Paged
from minillm.ops.visibility import Visibility
from minillm.spec import Chunk

DEVICE = torch.device("cpu")


def wanted(queries: torch.Tensor, keys: torch.Tensor, size: int, padding: int = 0) -> torch.Tensor:
    """Bool `[T, S]` by positions of a row that begins behind its padding."""
    i, j = queries[:, None] - padding, keys - padding
    return (j >= 0) & (j <= i) & (j // size == i // size)


@given(start=st.integers(0, 40), count=st.integers(1, 20), size=st.integers(1, 12), padding=st.integers(0, 9))
def test_what_is_seen(start: int, count: int, size: int, padding: int) -> None:
    padded = torch.tensor([0, padding]) if padding else None
    made = Visibility(start, count, Chunk(size), padded, DEVICE)
    queries = torch.arange(start, start + count)
    mask = made.mask
    assert mask is not None
    first, last = (each.expand(2, count) for each in made.spans)
    for row, left in enumerate((0, padding)):
        own = wanted(queries, made.key_positions, size, left)
        real = queries >= left  # what stands in the padding is never used
        shown = mask[row, 0] if mask.shape[0] == 2 else mask[0, 0]
        assert torch.equal(shown[real], own[real])
        assert torch.equal(first[row][real], queries[real] - (queries[real] - left) % size)
        assert torch.equal(last[row], queries)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 12))
def test_one_query_of_each_row(positions: list[int], size: int) -> None:
    """Where only the device knows the positions, and where keys lie in blocks."""
    at = torch.tensor(positions)
    made = Visibility(63, 1, Chunk(size), None, DEVICE, at)
    assert made.mask is not None
    for mask, keys, position in zip(made.mask[:, 0], made.key_positions[:, 0, 0], at, strict=True):
        assert torch.equal(mask, wanted(position[None], keys, size))
    assert torch.equal(Paged.at(at, torch.zeros(len(at), 4, dtype=torch.int32), 16, Chunk(size)).first, at - at % size)


@given(st.integers(0, 20), st.integers(1, 8), st.integers(2, 9))
def test_ops_see_the_same(start: int, count: int, size: int) -> None:
    torch.manual_seed(start)
    made = Visibility(start, count, Chunk(size), None, DEVICE)
    keys = made.key_positions
    q, k, v = torch.randn(1, 4, count, 8), torch.randn(1, 2, len(keys), 8), torch.randn(1, 2, len(keys), 8)
    scores = q @ k.repeat_interleave(2, 1).transpose(2, 3) * 8**-0.5
    seen = wanted(torch.arange(start, start + count), keys, size)
    exact = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    for ops in (REFERENCE, CPU):
        assert (ops.attention(q, k, v, made) - exact).abs().max() <= 1e-5


def test_a_chunk_is_no_window() -> None:
    assert Chunk(8) != 8
    assert len({Chunk(8): 0, 8: 1}) == 2
    assert Chunk(8) == Chunk(8)
