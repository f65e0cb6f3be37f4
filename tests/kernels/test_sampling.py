"""The sampling kernel against `minillm.ops.draw`: the same tokens are kept, and drawn as often; in the interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.engine.sampling import Sampling, as_tensors, probabilities
from minillm.kernels import sampling as kernel
from minillm.kernels.sampling import sample
from tests.conftest import FAST


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK", 32)


def rows(count: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, seed: int = 0,
         position: int = 0) -> list[Tensor]:  # fmt: skip
    """The same for every row, but for positions, which count from `position` on."""
    settings = as_tensors([Sampling(temperature, top_k, top_p, min_p)] * count)
    return [*settings, torch.full((count,), seed), torch.arange(position, position + count)]


def kept(logits: Tensor, **options: Any) -> Tensor:
    found = torch.full((1, len(logits)), 7, dtype=torch.uint8)
    sample(logits[None], *rows(1, **options), found)
    return found[0].bool()


@settings(max_examples=25, **FAST)
@given(st.data())
def test_the_same_tokens_are_kept(data: st.DataObject) -> None:
    """Distinct logits: where some tie at the end of the nucleus, a sort keeps some of them and the kernel all."""
    words = data.draw(st.integers(1, 60))
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    logits = torch.randn(words, generator=made) * data.draw(st.sampled_from((0.01, 1.0, 8.0)))
    options = {
        "temperature": data.draw(st.floats(0.2, 3.0)),
        "top_k": data.draw(st.integers(0, words + 3)),
        "top_p": data.draw(st.just(1.0) | st.floats(0.01, 0.999)),
        "min_p": data.draw(st.just(0.0) | st.floats(0.01, 1.0)),
    }
    expected = probabilities(logits, Sampling(**options)) > 0
    found = kept(logits, **options)
    if not torch.equal(found, expected):  # only where rounding decides: one token, at the edge of the nucleus
        odd = (found != expected).nonzero().flatten()
        whole = probabilities(logits, Sampling(temperature=options["temperature"], top_k=options["top_k"]))
        above = whole[logits > logits[odd[0]]].sum()
        assert len(odd) == 1
        assert abs(above - options["top_p"]) <= 1e-5


def test_ties() -> None:
    """With the kth: all stay, as in the reference. At the end of the nucleus: all stay."""
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, -0.0, 0.0])
    assert kept(logits, top_k=2).tolist() == [False, True, True, True, True, False, False]
    assert kept(logits, top_k=6).sum() == 7  # -0 is 0
    assert kept(torch.zeros(8), top_p=0.3).sum() == 8
    assert kept(logits, top_p=0.01).tolist() == [False, True, False, False, False, False, False]


def test_drawn_as_often() -> None:
    """Chi-square over 400 draws, its mean and three and a half deviations allowed; the seed is fixed."""
    words, draws, options = 12, 400, {"temperature": 1.5, "min_p": 0.1}  # which keep five
    logits = torch.randn(words, generator=torch.Generator().manual_seed(5)) * 1.5
    expected = probabilities(logits, Sampling(**options)) * draws
    tokens = sample(logits.expand(draws, words), *rows(draws, **options, seed=11))
    counts = torch.bincount(tokens, minlength=words).double()
    assert counts[expected == 0].sum() == 0
    likely = expected > 5
    statistic = ((counts - expected)[likely].square() / expected[likely]).sum().item()
    degrees = int(likely.sum()) - 1
    assert statistic <= degrees + 3.5 * math.sqrt(2 * degrees)


def test_clocks_are_fair_over_the_whole_vocabulary() -> None:
    """Equal logits in several blocks: tokens are uniform."""
    tokens = sample(torch.zeros(120, 70), *rows(120, seed=3)).double()
    assert abs(tokens.mean() - 34.5) <= 3.3 * math.sqrt((70**2 - 1) / 12 / 120)
    assert len(tokens.unique()) > 45


def test_seed_and_position_decide_and_nothing_else() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    options = rows(6, seed=4, position=2**33)
    tokens = sample(logits, *options)
    assert torch.equal(sample(logits, *options), tokens)
    for row in (0, 5):
        alone = sample(logits[row : row + 1], *(each[row : row + 1] for each in options))
        assert alone.item() == tokens[row]
    same = logits[:1].expand(12, 50).contiguous()
    by_position, by_seed = rows(12), rows(12)
    by_seed[4], by_seed[5] = torch.arange(12), torch.zeros(12, dtype=torch.int64)
    high = rows(12)
    high[5] = high[5] << 32
    draws = [sample(same, *each).tolist() for each in (by_position, by_seed, high)]
    assert all(len(set(each)) > 5 for each in draws)
    assert draws[0] != draws[1] != draws[2]


def test_greedy_strided_and_odd_rows() -> None:
    logits = torch.randn(5, 80)
    logits[2, :] = -math.inf
    logits[2, 33] = -5.0
    logits[3, [7, 60]] = 99.0
    part = logits[:, 2:71]
    assert not part.is_contiguous()
    for options in ({"temperature": 0.0}, {"temperature": 0.0, "top_k": 3, "top_p": 0.5}, {"top_k": 1}):
        found = sample(part, *rows(5, **options))
        assert found[[0, 1, 2, 4]].tolist() == part.argmax(-1)[[0, 1, 2, 4]].tolist()
    assert sample(part, *rows(5, temperature=0.0))[3] == 5
    half = sample(part.half(), *rows(5, temperature=0.0))
    assert half[2] == 31


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_to_choose_nothing_from(bad: float) -> None:
    logits = torch.randn(3, 40)
    logits[1, 37] = bad
    logits[2, :] = -math.inf
    for temperature in (0.0, 1.0):
        found = sample(logits, *rows(3, temperature=temperature, top_k=5, top_p=0.9))
        assert (found[0] >= 0, found[1].item(), found[2].item()) == (True, -1, -1)


def test_nothing() -> None:
    assert sample(torch.ones(0, 4), *rows(0)).shape == (0,)


def other(index: int, value: Tensor) -> list[Tensor]:
    given_ = rows(2)
    given_[index] = value
    return given_


REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "stride": (lambda: sample(torch.ones(4, 2).t(), *rows(2)), r"strides \(1, 2\)"),
    "no words": (lambda: sample(torch.ones(2, 0), *rows(2)), r"logits are \[2, 0\]"),
    "rows": (lambda: sample(torch.ones(2, 4), *rows(3)), r"temperature is torch.float32 \[3\]"),
    "top_k": (lambda: sample(torch.ones(2, 4), *other(1, torch.zeros(2))), "top_k is torch.float32"),
    "seeds": (lambda: sample(torch.ones(2, 4), *other(4, torch.zeros(2))), "seeds is torch.float32"),
    "kept": (lambda: sample(torch.ones(2, 4), *rows(2), torch.ones(2, 4)), "kept is torch.float32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
