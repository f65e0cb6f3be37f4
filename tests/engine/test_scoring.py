"""Scores of continuations: each is what the model says of that sequence alone, whatever goes through it beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import minillm
from minillm.engine import scoring
from minillm.engine.scoring import Pair, score
from minillm.model.decoder import Decoder
from tests.helpers import tiny

# Windows, caps, experts, latents, and rotary scalings that go by the length of a sequence.
FAMILIES = ["llama-dynamic-beyond", "phi3-long", "mistral-window", "gemma2", "mixtral", "deepseek_v3"]


def alone(model: Decoder, pair: Pair) -> tuple[float, bool]:
    """Token by token, each behind a pass of its own over what is before the last one scored."""
    context, continuation = pair
    ids = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        logits = model(ids[:, :-1])[0, -len(continuation) :].double()
    logprobs = logits.log_softmax(-1)
    total = sum(logprobs[at, token].item() for at, token in enumerate(continuation))
    return total, logits.argmax(-1).tolist() == list(continuation)


def pairs_of(model: Decoder, lengths: list[tuple[int, int]]) -> list[Pair]:
    """Contexts and continuations of these lengths; the last continuation is the model's own choice."""
    count = sum(map(sum, lengths))
    ids = tiny.tokens(model.spec.vocab_size, count).tolist()
    pairs: list[Pair] = []
    for context, continuation in lengths:
        pairs.append((ids[:context], ids[context : context + continuation]))
        ids = ids[context + continuation :]
    chosen = list(pairs[-1][0])
    while len(chosen) < sum(lengths[-1]):
        with torch.no_grad():
            chosen.append(int(model(torch.tensor([chosen]))[0, -1].argmax()))
    return [*pairs[:-1], (pairs[-1][0], chosen[lengths[-1][0] :])]


PER_TOKEN = 5e-6  # nats; measured over all of this: 1.2e-6
LENGTHS = [(1, 1), (9, 4), (30, 3), (12, 1), (2, 17), (5, 6)]


@pytest.mark.parametrize("row", FAMILIES)
def test_a_batch_scores_what_each_pair_scores_alone(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All together, in twos, one by one, and with long ones in pieces."""
    tiny.save(tmp_path, *tiny.ROWS[row])
    model = minillm.load(tmp_path, dtype="float32", kernels="reference").model
    pairs = pairs_of(model, LENGTHS)
    expected = [alone(model, pair) for pair in pairs]
    assert [greedy for _, greedy in expected] == [False] * 5 + [True]
    for rows, piece in ((None, 2048), (1, 2048), (2, 2048), (1, 8)):
        monkeypatch.setattr(scoring, "BUDGET", piece)
        found = score(model, pairs, max_rows=rows)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        for (ours, _), (theirs, _), (_, continuation) in zip(found, expected, pairs, strict=True):
            assert ours == pytest.approx(theirs, abs=PER_TOKEN * len(continuation))


def test_what_pairs_have_in_common_is_read_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices of one token, and the same text cut at another place; the logits come in pieces of two."""
    model = minillm.load(saved, dtype="float32", kernels="reference").model
    context = tiny.tokens(model.spec.vocab_size, 12).tolist()
    pairs: list[Pair] = [(context, [token]) for token in range(5)] + [(context[:7], [*context[7:], 3])]
    read: list[int] = []
    hidden = model.hidden_of_many
    model.hidden_of_many = lambda tokens, *given: (read.append(len(tokens)), hidden(tokens, *given))[1]  # type: ignore[method-assign]
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 2 * model.spec.vocab_size)
    done: list[tuple[int, int]] = []
    found = score(model, pairs, progress=lambda *counts: done.append(counts))
    assert read == [12]
    assert done == [(6, 6)]
    long = tiny.tokens(model.spec.vocab_size, 40).tolist()
    choices: list[Pair] = [(long, [token, 7]) for token in range(3)]
    together, apart = score(model, choices), [score(model, [pair])[0] for pair in choices]
    assert [each for each, _ in together] == pytest.approx([each for each, _ in apart], abs=2 * PER_TOKEN)
    assert read[1:] == [41, 2 * (41 - 32), 41, 41, 41]  # two blocks of the context are there for the second and third
    for pair, (logprob, greedy) in zip(pairs, found, strict=True):
        expected = alone(model, pair)
        assert (logprob, greedy) == (pytest.approx(expected[0], abs=PER_TOKEN * len(pair[1])), expected[1])


@pytest.mark.parametrize(
    ("pair", "message"),
    [(([], [1]), "empty"), (([1], []), "empty"), (([1] * 100, [1] * 100), "199 tokens to read, the model takes 128")],
)
def test_what_cannot_be_scored(pair: Pair, message: str, saved: Path) -> None:
    tiny_model = minillm.load(saved, dtype="float32", kernels="reference").model
    assert tiny_model.spec.context == 128
    with pytest.raises(ValueError, match=message):
        score(tiny_model, [([1], [2]), pair])


def test_the_longest_pair_that_fits(saved: Path) -> None:
    model = minillm.load(saved, dtype="float32", kernels="reference").model
    pair = pairs_of(model, [(121, 8)])[0]
    assert score(model, [pair])[0] == (pytest.approx(alone(model, pair)[0], abs=PER_TOKEN * 8), True)
