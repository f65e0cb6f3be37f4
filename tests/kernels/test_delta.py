"""The kernels of the gated delta rule beyond one op at a time: launches made twice, sequences in pieces, what models
hand over, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minillm.kernels import delta_rule as rule_kernel
from minillm.ops import REFERENCE, recurrent, select
from tests.helpers.kernel_cases import ulps
from tests.helpers.recurrent_problems import in_order

pytestmark = pytest.mark.usefixtures("small_kernels")
TRITON = select("triton", torch.device("cpu"), torch.float32)
UNITS = 6  # of fp32, as `delta_rule` has in `kernel_problems.py`


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def sequence(steps: int, keys: int = 20, values: int = 24) -> tuple[Tensor, ...]:
    q, k, v = drawn(1, steps, 2, keys), drawn(1, steps + 1, 2, keys)[:, 1:], drawn(1, steps, 4, values)
    return q, k, v, -drawn(1, steps, 4).abs() / 8, drawn(1, steps, 4).sigmoid(), drawn(1, 4, keys, values)


def step(batch: int = 3) -> tuple[Tensor, ...]:
    keys, values, heads, taps = 20, 24, 4, 4
    channels = 2 * 2 * keys + heads * values
    of_layer = drawn(channels, taps), drawn(heads), drawn(heads + 1)[1:], drawn(values)
    rings = drawn(batch, taps + 1, channels), drawn(batch, 3, heads, keys, values)
    given = drawn(batch, 1, channels + heads * values), drawn(batch, 1, 2 * heads)
    return *given, *of_layer, *rings, torch.tensor([0, 5, 1000])[:batch]


def test_pieces_are_the_whole() -> None:
    """State by state, whatever the chunks are cut into; and not at a multiple of them."""
    *given, state = sequence(75)
    parts = []
    for piece in zip(*(each.split([33, 1, 16, 25], dim=1) for each in given), strict=True):
        o, state = TRITON.delta_rule(*piece, state)
        parts.append(o)
    expected, last = in_order(*(each.double() for each in sequence(75)))
    assert ulps(torch.cat(parts, dim=1), expected) <= UNITS
    assert ulps(state, last) <= UNITS


def test_decays_that_add_up_to_hundreds() -> None:
    """Sums of g in fp32 would be off by more than what two neighbours differ by."""
    q, k, v, g, beta, state = sequence(48)
    g = torch.where(torch.arange(48)[None, :, None] % 16 == 0, -400.0, g / 50)
    o, last = TRITON.delta_rule(q, k, v, g, beta, state)
    expected, expected_last = in_order(*(each.double() for each in (q, k, v, g, beta, state)))
    assert ulps(o, expected) <= UNITS
    assert ulps(last, expected_last) <= UNITS


def test_a_step_made_twice_is_made_once() -> None:
    """As a recording makes it: nothing that is read is written."""
    once, twice = step(), step()
    y = TRITON.delta_step(*once, 1e-2)
    for _ in range(2):
        again = TRITON.delta_step(*twice, 1e-2)
    assert torch.equal(y, again)
    for one, other in zip(once, twice, strict=True):
        assert torch.equal(one, other)


def test_what_a_convolution_gives() -> None:
    """Positions side by side and channels apart."""
    q, k, v, *rest = sequence(20)
    apart = (each.transpose(1, 3).contiguous().transpose(1, 3) for each in (q, k, v))
    for one, other in zip(TRITON.delta_rule(*apart, *rest), TRITON.delta_rule(q, k, v, *rest), strict=True):
        assert torch.equal(one, other)


def test_gradients_go_through_the_formula() -> None:
    q, k, v, *rest = sequence(20)
    v.requires_grad_()
    found, expected = (
        torch.autograd.grad(each(q, k, v, *rest)[0].sum(), v)[0] for each in (TRITON.delta_rule, recurrent.delta_rule)
    )
    assert torch.equal(found, expected)


def test_what_does_not_fit_is_refused() -> None:
    q, k, v, g, beta, state = sequence(20)
    for given, message in (
        ((q[:, 1:], k, v, g, beta, state), "do not fit v"),
        ((q[:, :, :1], k[:, :, :1].expand(-1, -1, 3, -1), v, g, beta, state), "do not fit"),
        ((q.mT.contiguous().mT, k, v, g, beta, state), "must be contiguous"),
        ((q, k, v, g.half(), beta, state), "g is torch.float16"),
    ):
        with pytest.raises(ValueError, match=message):
            rule_kernel.delta_rule(*given)
    qkvz, ba, *of_layer, inputs, states, position = step()
    for changed, message in (
        ((qkvz[..., 1:], ba, *of_layer, inputs, states, position), "do not fit"),
        ((qkvz, ba, *of_layer, inputs[:, :3], states, position), "rings of 3 states and 3 inputs; at least 2 and 4"),
        ((qkvz, ba, *of_layer, inputs, states[:, :1], position), "rings of 1 states"),
        ((qkvz, ba, *of_layer, inputs, states.half(), position), "state, decay and step are torch.float16"),
        ((qkvz, ba, *of_layer, inputs, states, position.int()), "position and rows are int64"),
        ((qkvz, ba, *of_layer, inputs, states.mT.contiguous().mT, position), "must be contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            TRITON.delta_step(*changed, 1e-2)


def test_nothing_gives_nothing() -> None:
    *given, state = sequence(20)
    o, last = TRITON.delta_rule(*(each[:, :0] for each in given), state)
    assert o.shape == (1, 0, 4, 24)
    assert torch.equal(last, state)
    assert REFERENCE.delta_rule is recurrent.delta_rule
