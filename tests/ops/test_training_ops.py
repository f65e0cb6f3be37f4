"""Ops whose way back is written by hand: values and gradients against the formula in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minillm.model.lora.deltas import _InPlace
from minillm.ops import dense, reference, select
from minillm.ops.cpu import training


def agree(made: Callable[..., Tensor], formula: Callable[..., Tensor], given: list[Tensor], limit: float) -> None:
    """Values and the gradients of all that learns, within `limit` of the largest value of each."""
    found, wanted = ([e.detach().to(kind, copy=True).requires_grad_(e.requires_grad) for e in given]
                     for kind in (torch.float32, torch.float64))  # fmt: skip
    y, expected = made(*found), formula(*wanted)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    for one, other in [(y, expected), *((a.grad, b.grad) for a, b in zip(found, wanted, strict=True))]:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one - other).abs().max() <= limit * other.abs().max()


def drawn(*shapes: tuple[int, ...], learns: tuple[bool, ...]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=draw).requires_grad_(learn) for s, learn in zip(shapes, learns, strict=True)]


@pytest.mark.parametrize("learns", [(True, False, False), (True, True, True), (False, True, False)])
def test_products(learns: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "FEW", 0)
    given = drawn((2, 37, 64), (96, 64), (96,), learns=learns)
    assert dense._suits(given[0], given[1])
    agree(dense.linear, reference.linear, given, 2e-6)  # sums of 96 products at most; 4e-7 was seen


def test_only_products_that_are_worth_it() -> None:
    x, weight = torch.zeros(8, 64), torch.zeros(96, 64)
    assert not dense._suits(x, weight)
    alone, large = torch.ones(4096), torch.ones(4096, 4096)  # of one token, which has no rows
    assert dense.linear(alone, large).tolist() == [4096.0] * 4096
    assert not dense._suits(torch.zeros(512, 896).bfloat16(), torch.zeros(896, 896).bfloat16())
    assert dense._suits(torch.zeros(512, 896), torch.zeros(896, 896))


def test_gated_silu() -> None:
    agree(training.gated_act, reference.gated_act, drawn((2, 5, 14), learns=(True,)), 1e-6)


def test_a_thin_product_is_added_in_place() -> None:
    given = drawn((2, 5, 14), (2, 5, 3), (14, 3), learns=(True, True, True))
    agree(lambda y, low, b: _InPlace.apply(y * 1, low, b), lambda y, low, b: y + low @ b.T, given, 1e-6)
    y, low, b = (each.detach() for each in given)
    assert _InPlace.apply(y, low, b).data_ptr() == y.data_ptr()


def test_training_takes_them_on_a_cpu() -> None:
    ops = select("training", torch.device("cpu"), torch.float32)
    assert ops.linear is dense.linear
    assert ops.gated_act is training.gated_act
    assert ops.experts is reference.experts
