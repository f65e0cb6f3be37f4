"""What queries add to their scores by distance, convolutions that are added, and experts that all tokens go to, term by
term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.model.attention import tempered
from minillm.ops import CPU, Ops, reference, routing
from minillm.ops.cpu import ops as cpu_ops
from minillm.ops.paged import Paged
from minillm.ops.recurrent import added_conv, preceded
from minillm.ops.visibility import Visibility
from minillm.spec import Router, Temperature

COMPILED = Ops(**cpu_ops.OPS, tile=cpu_ops.TILE)
HERE = torch.device("cpu")
HEADS, KV, DIM, EXTENT, LENGTH = 4, 2, 8, 5, 9


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_terms(q: Tensor, k: Tensor, v: Tensor, added: Tensor, window: int | None) -> Tensor:
    """One query, one head and one key after the other; q `[H, T, D]` at the last positions."""
    y, past = torch.zeros_like(q), k.shape[1] - q.shape[1]
    for head in range(HEADS):
        own = head // (HEADS // KV)
        for i in range(q.shape[1]):
            scores = []
            for j in range(k.shape[1]):
                back = past + i - j
                seen = 0 <= back < (window or LENGTH)
                more = added[head, i, back] if 0 <= back < EXTENT else 0.0
                scores.append(q[head, i] @ k[own, j] / 7 + more if seen else torch.tensor(float("-inf")))
            y[head, i] = torch.stack(scores).softmax(0) @ v[own]
    return y


@pytest.mark.parametrize("ops", [CPU, COMPILED], ids=["plain", "compiled"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("count", [1, 4, LENGTH])
def test_scores_by_distance(ops: Ops, window: int | None, count: int) -> None:
    k, v, start = drawn(1, KV, LENGTH, DIM), drawn(1, KV, LENGTH, DIM, seed=1), LENGTH - count
    q, added = drawn(1, HEADS, count, DIM, seed=2), drawn(1, HEADS, count, EXTENT, seed=3)
    visible = Visibility(start, count, window, None, HERE)
    keys, values = (each[:, :, visible.key_positions] for each in (k, v))  # of a ring, in the order of its slots
    y = ops.attention(q, keys, values, visible, 1 / 7, added=added)
    torch.testing.assert_close(y[0], by_terms(q[0], k[0], v[0], added[0], window), atol=1e-5, rtol=0)


@pytest.mark.parametrize("ops", [CPU, COMPILED], ids=["plain", "compiled"])
@pytest.mark.parametrize("window", [None, 3])
def test_scores_by_distance_over_blocks(ops: Ops, window: int | None) -> None:
    """Of two sequences of 9 and 5 positions, in blocks of 4 that lie the other way around."""
    k, v = drawn(1, KV, 24, DIM), drawn(1, KV, 24, DIM, seed=1)
    q, added = drawn(1, HEADS, 2, DIM, seed=2), drawn(1, HEADS, 2, EXTENT, seed=3)
    tables, last = torch.tensor([[4, 2, 0], [5, 1, 3]], dtype=torch.int32), torch.tensor([8, 4])
    paged = Paged.at(last, tables, 4, window)
    y = ops.paged_attention(q, k, v, paged, 1 / 7, added=added)
    for n in range(2):
        slots = paged.slots(torch.arange(int(last[n]) + 1).expand(2, -1))[n]
        own = (q[0, :, n : n + 1], k[0][:, slots], v[0][:, slots], added[0, :, n : n + 1])
        torch.testing.assert_close(y[0, :, n : n + 1], by_terms(*own, window), atol=1e-5, rtol=0)


def test_queries_that_grow_without_steps() -> None:
    positions = torch.tensor([0, 2, 3, 4, 11])
    expected = [1.0, 1.0, 1.0, 1 + 0.3 * torch.tensor(5 / 4).log(), 1 + 0.3 * torch.tensor(12 / 4).log()]
    found = tempered(positions, Temperature(0.3, 4, 1, stepped=False))
    torch.testing.assert_close(found, torch.tensor([float(each) for each in expected]))


def test_a_convolution_that_is_added() -> None:
    x, weight = drawn(2, 9, 6), drawn(6, 4, seed=1)
    expected = x + F.conv1d(F.pad(x, (0, 0, 3, 0)).mT, weight[:, None], groups=6).mT
    torch.testing.assert_close(added_conv(F.pad(x, (0, 0, 3, 0)), weight), expected)
    ring = torch.zeros(2, 4, 6)
    steps = [added_conv(preceded(x[:, i : i + 1], ring, torch.tensor([i, i]), None, 4), weight) for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected)
    half = added_conv(F.pad(x, (0, 0, 3, 0)).bfloat16(), weight)  # the sum is not rounded before x is added
    exact = added_conv(F.pad(x, (0, 0, 3, 0)).bfloat16().float(), weight)
    assert torch.equal(half, exact.bfloat16())


def test_shares_of_experts_that_all_tokens_go_to() -> None:
    """softmax of log sigmoid over the chosen ones and those, as transformers has it."""
    logits, bias = drawn(20, 8), drawn(6, seed=1)
    found: Any = routing.route_weighed(logits, bias, Router(6, 3, "sigmoid", True, 1.3, bias=True))
    chosen = (logits[:, :6].sigmoid() + bias).topk(3).indices
    assert torch.equal(found.experts, chosen)
    every = torch.cat((logits.gather(1, chosen), logits[:, 6:]), dim=1)
    expected = F.logsigmoid(every).softmax(-1) * 1.3
    torch.testing.assert_close(torch.cat((found.weights, found.shared), dim=1), expected)
    torch.testing.assert_close(found.logits, logits[:, :6])


def test_a_profile_of_half_precision_is_added_in_fp32() -> None:
    added = drawn(1, 2, 3, EXTENT).bfloat16()
    found = reference.by_distance(added, Visibility(4, 3, None, None, HERE).distances, 1)
    assert found.shape == (1, 1, 2, 3, 7)
    assert float(found[0, 0, 1, 2, 6]) == float(added[0, 1, 2, 0])
    assert float(found[0, 0, 1, 2, 0]) == 0.0
