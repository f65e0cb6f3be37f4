"""Sampling: each step against transformers' own processors, the draws against their distribution."""

from __future__ import annotations

import pytest
import torch
import transformers.generation.logits_process as theirs
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm.engine.sampling import (
    LIMITS,
    History,
    Sampling,
    as_tensors,
    defaults,
    penalise,
    probabilities,
    unsupported,
)
from minillm.ops.draw import sample, uniform

logits = st.integers(0, 10_000).map(lambda seed: torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 3)


@given(
    logits,
    st.floats(0.1, 3.0),
    st.integers(0, 45),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.9),
)
def test_distribution_is_that_of_transformers(
    logits_V: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    ids, scores = torch.zeros(1, 1, dtype=torch.long), logits_V[None]
    scores = theirs.TemperatureLogitsWarper(temperature)(ids, scores)
    if top_k:
        scores = theirs.TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = theirs.TopPLogitsWarper(top_p)(ids, scores)
    if min_p > 0:
        scores = theirs.MinPLogitsWarper(min_p)(ids, scores)
    found = probabilities(logits_V, Sampling(temperature, top_k, top_p, min_p))
    assert (found - scores[0].softmax(-1)).abs().max() <= 1e-6


@given(logits, st.floats(0.5, 2.0), st.lists(st.integers(0, 39), min_size=1, max_size=9))
def test_repetition_penalty_is_that_of_transformers(logits_V: torch.Tensor, penalty: float, ids: list[int]) -> None:
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits_V[None].clone())[0]
    found = penalise(logits_V, Sampling(repetition_penalty=penalty), History(40, ids[:3], ids[3:]))
    assert (found - expected).abs().max() <= 1e-6


def test_presence_and_frequency_penalty_by_hand() -> None:
    """Token 1 came twice, token 3 once, token 0 in the prompt only."""
    found = penalise(torch.zeros(4), Sampling(presence_penalty=0.5, frequency_penalty=0.25), History(4, [0], [1, 3, 1]))
    assert found.tolist() == [0.0, -1.0, 0.0, -0.75]


def test_penalties_leave_the_logits_they_were_given() -> None:
    given_logits = torch.ones(4)
    penalise(given_logits, Sampling(repetition_penalty=2.0), History(4, [0]))
    assert given_logits.tolist() == [1.0] * 4


def test_the_likeliest_token_always_stays() -> None:
    logits_V = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for cut in ({"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}):
        assert probabilities(logits_V, Sampling(temperature=1.0, **cut)).nonzero().tolist() == [[logits_V.argmax()]]


def rows(count: int, sampling: Sampling, seed: int) -> list[torch.Tensor]:
    """The same settings for every row, at positions 0, 1, …"""
    return [*as_tensors([sampling] * count), torch.full((count,), seed), torch.arange(count)]


def test_philox_is_the_published_one() -> None:
    """The known answers of Random123 for Philox 4x32-10: counter and key of zeros, and of ones (three words of it)."""
    assert uniform(0, 0, torch.tensor([0])).item() == (0x6627E8D5 + 0.5) / 2**32
    word = 0xFFFFFFFF
    digits_of_pi = uniform(0x299F31D0A4093822, 0, torch.tensor([0x243F6A88])).item()
    assert digits_of_pi == philox(0x243F6A88, 0, 0, 0, 0xA4093822, 0x299F31D0)
    assert uniform(2**63 - 1, 2**40 + 3, torch.tensor([word])).item() == philox(word, 3, 256, 0, word, 2**31 - 1)


def philox(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> float:
    """Ten rounds in Python's integers."""
    for _ in range(10):
        one, two = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = two >> 32 ^ c1 ^ k0, two % 2**32, one >> 32 ^ c3 ^ k1, one % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return (c0 + 0.5) / 2**32


def test_draws_follow_the_distribution() -> None:
    """20,000 draws: each frequency within 4 standard deviations of its probability."""
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
    sampling = Sampling(temperature=1.3, top_k=4)
    count = 20_000
    draws = sample(logits_V.expand(count, 5), *rows(count, sampling, seed=0))
    chances = probabilities(logits_V, sampling)
    deviation = (chances * (1 - chances) / count).sqrt()
    assert ((draws.bincount(minlength=5) / count - chances).abs() <= 4 * deviation).all()


@pytest.mark.parametrize("name", LIMITS)
def test_values_outside_the_limits_are_refused(name: str) -> None:
    low, high = LIMITS[name]
    for bad in (low - 1, high * 2 + 1, float("nan"), "1", True):
        with pytest.raises(ValueError, match=f"{name} is"):
            Sampling(**{name: bad})


def test_top_p_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature 0"):
        Sampling(top_p=0.0)


@pytest.mark.parametrize(("name", "value"), [("top_k", 50.0), ("seed", 1.0), ("temperature", 1e-40)])
def test_numbers_of_the_wrong_kind_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        Sampling(**{name: value})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_from_logits_that_are_no_numbers_nothing_is_drawn(bad: float, temperature: float) -> None:
    logits_V = torch.zeros(5)
    logits_V[3] = bad
    both = torch.stack((logits_V, torch.zeros(5)))
    found = sample(both, *rows(2, Sampling(temperature=temperature), seed=0))
    assert found[0] == -1
    assert found[1] >= 0


def test_what_a_generation_config_asks_for_in_vain() -> None:
    stated = {"num_beams": 4, "no_repeat_ngram_size": 3, "typical_p": 1.0, "top_k": 5, "eos_token_id": 1, "stop": None}
    assert unsupported(stated) == ["no_repeat_ngram_size", "num_beams"]
    with pytest.raises(ValueError, match="do_sample is 'x'"):
        defaults({"do_sample": "x"})


def test_defaults_of_a_generation_config() -> None:
    stated = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert defaults(stated) == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert defaults({**stated, "do_sample": False}) == {"temperature": 0.0, "repetition_penalty": 1.05}
    assert defaults({"do_sample": True}) == {"temperature": 1.0}
    assert defaults({"do_sample": True, "temperature": 1e-7, "top_k": -1}) == {"temperature": 0.0, "top_k": 0}
    assert defaults({}) == {"temperature": 0.0}


def test_a_seed_means_the_same_alone_and_in_a_batch() -> None:
    llm = minillm.load()
    prompts = ["Once upon a time", "Long ago there was a brave little fox named", "One sunny"]
    options = {"max_new_tokens": 24, "temperature": 0.9, "seed": 5, "ignore_eos": True}
    together = llm.generate(prompts, **options)
    assert [result.token_ids for result in together] == [llm.generate(p, **options).token_ids for p in prompts]
    other = llm.generate(prompts[0], **{**options, "seed": 6})
    assert other.token_ids != together[0].token_ids
