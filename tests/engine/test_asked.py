"""What a completion may be asked beside its sampling: log-probabilities as transformers has them, a bias, a least
length, a grammar; and several continuations of one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

import minillm
from minillm.engine.asked import Asked
from minillm.engine.batching.engine import Engine
from minillm.engine.batching.request import Request
from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.model.decoder import Decoder
from tests.helpers import tiny
from tests.helpers.loops import always

VOCABULARY = 97
PROMPT = tiny.tokens(VOCABULARY, 37, seed=1).tolist()
NATS = 2e-5  # of a log-probability, as for logits


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Any]:
    """A model, and what transformers makes of the same files."""
    folder = Path(tmp_path_factory.mktemp("asked"))
    tiny.save(folder, *tiny.ROWS["llama"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return minillm.load(folder, dtype="float32").model, theirs


def theirs_of(model: Any, ids: Sequence[int]) -> Tensor:
    """log p of each token behind each prefix, `[T, V]`."""
    with torch.no_grad():
        return model(torch.tensor([[*ids]])).logits[0].float().log_softmax(-1)


def run(model: Decoder, *rows: Completion, budget: int = 64, **options: Any) -> list[Request]:
    engine = Engine(model, 640, max_rows=4, budget=budget, **options)
    going = [engine.add(row) for row in rows]
    while engine.busy:
        engine.step()
    assert not any(blocks.users for blocks in engine.store.groups.values())
    return going


class Right:
    """Guesses what comes, but for every third token."""

    cost = 0.0

    def __init__(self, text: list[int]):
        self.text = text

    def propose(self, wanted: Sequence[tuple[Request, int]]) -> list[list[int]]:
        found = []
        for request, count in wanted:
            at = len(request.row.token_ids)
            found.append([(id + (at + i) % 3 // 2) % VOCABULARY for i, id in enumerate(self.text[at : at + count])])
        return found


@pytest.mark.parametrize("guesses", [False, True])
def test_log_probabilities_are_those_of_transformers(both: tuple[Decoder, Any], guesses: bool) -> None:
    """Of new tokens and of the prompt, in pieces of 10, while another is under way; whatever the settings."""
    ours, theirs = both
    plain = Completion(PROMPT, Sampling(temperature=0.8, seed=3), 20)
    run(ours, plain)
    row = Completion(PROMPT, Sampling(temperature=0.8, seed=3), 20, asked=Asked(logprobs=3, prompt_logprobs=2))
    guesser = always(Right(plain.token_ids), 3) if guesses else None
    going = run(ours, Completion(PROMPT[:20], Sampling(), 9), row, budget=10, guesser=guesser)
    assert row.token_ids == plain.token_ids
    expected_TV = theirs_of(theirs, row.sequence)
    assert row.prompt_scores[0] is None
    for at, score in enumerate([*row.prompt_scores[1:], *row.scores]):
        assert score is not None
        best = expected_TV[at].topk(3 if at >= len(PROMPT) - 1 else 2)
        assert score.logprob == pytest.approx(expected_TV[at, row.sequence[at + 1]].item(), abs=NATS)
        assert [id for id, _ in score.top] == best.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=NATS)
    assert len(row.scores) == 20
    assert going[1].cached == 0  # its prompt has to be looked at, though its beginning was there


def test_a_bias_is_added_to_logits(both: tuple[Decoder, Any]) -> None:
    ours, theirs = both
    bias = {5: 100, 9: 99.5, 11: -100}
    row = Completion(PROMPT, Sampling(logit_bias=bias), 12)
    run(ours, row)
    changed_TV = theirs_of(theirs, row.sequence)
    for id, value in bias.items():
        changed_TV[:, id] += value
    assert row.token_ids == changed_TV[len(PROMPT) - 1 : -1].argmax(-1).tolist()
    assert 5 in row.token_ids


def test_a_least_length(both: tuple[Decoder, Any]) -> None:
    ours, theirs = both
    ends = frozenset(theirs_of(theirs, PROMPT)[-1].topk(40).indices.tolist())
    row = Completion(PROMPT, Sampling(), 30, ends, asked=Asked(min_new_tokens=6))
    run(ours, row)
    config = {"eos_token_id": sorted(ends), "pad_token_id": 0, "do_sample": False}
    expected = theirs.generate(torch.tensor([PROMPT]), min_new_tokens=6, max_new_tokens=30, **config)
    assert row.sequence == expected[0].tolist()
    assert row.finish_reason == "stop"
    assert row.stopped_by == row.token_ids[-1]


class Steps:
    """Lets ids come that are the last one plus 1 to `most`; fails when it is told to."""

    def __init__(self, last: int, most: int, fails_at: int | None = None):
        self.taken, self.most, self.fails_at = [last], most, fails_at

    def _may(self, last: int) -> list[int]:
        return [(last + step) % VOCABULARY for step in range(1, self.most + 1)]

    def fill(self, mask: NDArray[np.int32]) -> None:
        if len(self.taken) == self.fails_at:
            raise RuntimeError("a broken grammar")
        bits = np.zeros(len(mask) * 32, np.uint8)
        bits[self._may(self.taken[-1])] = 1
        mask[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def advance(self, token: int) -> None:
        assert token in self._may(self.taken[-1])
        self.taken.append(token)

    def rewind(self, count: int) -> None:
        del self.taken[len(self.taken) - count :]

    def allowed(self, tokens: Sequence[int]) -> int:
        last = [self.taken[-1], *tokens]
        fits = [token in self._may(before) for before, token in zip(last, tokens, strict=False)]
        return [*fits, False].index(False)


def guided(most: int, seed: int, fails_at: int | None = None) -> Completion:
    guide = Steps(PROMPT[-1], most, fails_at)
    return Completion(PROMPT, Sampling(temperature=1.5, seed=seed), 24, asked=Asked(guide=guide))


@pytest.mark.parametrize("guesses", [False, True])
def test_a_grammar_is_kept_to(both: tuple[Decoder, Any], guesses: bool) -> None:
    """Each request to its own, beside one without and one whose grammar fails; guesses that do not fit are left out,
    and those that do not come are taken back."""
    ours, _ = both
    alone = [guided(4, 0), guided(20, 1), Completion(PROMPT, Sampling(temperature=1.5, seed=2), 24)]
    for row in alone:
        run(ours, row)
    rows = [guided(4, 0), guided(20, 1), Completion(PROMPT, Sampling(temperature=1.5, seed=2), 24), guided(9, 3, 5)]
    guesser = always(Right(alone[1].token_ids), 4) if guesses else None
    going = run(ours, *rows, guesser=guesser)
    assert [row.token_ids for row in rows[:3]] == [row.token_ids for row in alone]
    assert all(request.error is None for request in going[:3])
    assert going[3].error == "the grammar failed: a broken grammar"
    assert len(rows[3].token_ids) == 4
    for row, most in zip(rows, (4, 20), strict=False):
        steps = np.diff([PROMPT[-1], *row.token_ids]) % VOCABULARY
        assert set(steps) <= set(range(1, most + 1))
        assert row.asked.guide.taken[1:] == row.token_ids  # type: ignore[union-attr]


def test_a_grammar_that_lets_nothing_come(both: tuple[Decoder, Any]) -> None:
    row = guided(0, 0)
    (request,) = run(both[0], row)
    assert request.error == "the grammar failed: the grammar lets no token come next"


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_next", "deepseek_v3"])
def test_continuations_of_one_prompt_read_it_once(family: str, tmp_path: Path) -> None:
    """Four of them with room for three at a time and a prompt that ends within a block: full blocks are shared, the
    last is copied, and each writes what it writes alone."""
    tiny.save(tmp_path, *tiny.ROWS[family])
    model = minillm.load(tmp_path, dtype="float32").model
    alone = [Completion(PROMPT, Sampling(temperature=1.0, seed=seed), 30) for seed in range(4)]
    rows = [Completion(PROMPT, Sampling(temperature=1.0, seed=seed), 30) for seed in range(4)]
    for row in alone:
        run(model, row)
    engine = Engine(model, 640, max_rows=3, budget=20)
    first, *others = [engine.request(row) for row in rows]
    for other in others:
        other.leader = first
    engine.scheduler.waiting += [first, *others]
    read = []
    while engine.busy:
        engine.step()
        read.append(engine.timings.prompt_tokens)
    assert [row.token_ids for row in rows] == [row.token_ids for row in alone]
    assert len({tuple(row.token_ids) for row in rows}) == 4
    assert read[len(read) // 4] == len(PROMPT)  # for three of them
    assert [other.cached for other in others[:2]] == [len(PROMPT)] * 2


def test_what_is_behind_the_last_layer(both: tuple[Decoder, Any]) -> None:
    """From a position on, in pieces; a request that wants no new tokens ends when it is read."""
    ours, theirs = both
    seen: dict[int, Tensor] = {}
    asked = Asked(reader=lambda start, x_TE: seen.__setitem__(start, x_TE), read_from=12)
    (request,) = run(ours, Completion(PROMPT, Sampling(), 0, asked=asked), budget=10)
    with torch.inference_mode():
        found_TV = ours.logits(torch.cat([seen[at] for at in sorted(seen)])[None])[0].log_softmax(-1)
    assert (found_TV - theirs_of(theirs, PROMPT)[12:]).abs().max() < NATS
    assert request.row.finish_reason == "length"
    assert request.row.token_ids == []


def test_raw_text_and_what_ended_it() -> None:
    llm = minillm.load(dtype="float32")
    text = llm.generate("Once upon a time", max_new_tokens=40).text
    stop = text[30:34]
    row = llm.completion("Once upon a time", max_new_tokens=40, stop=["never", stop], raw=True)
    run(llm.model, row)
    assert row.raw == row.text == text[: text.index(stop)]
    assert row.stopped_by == stop
    later = llm.completion("Once upon a time", max_new_tokens=40, stop=stop, min_new_tokens=40)
    run(llm.model, later)
    assert later.text[: len(text)].startswith(text[:20])
    assert len(later.token_ids) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logprobs": 21}, "logprobs is 21, it must be from 0 to 20"),
        ({"prompt_logprobs": True}, "prompt_logprobs is True"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"logit_bias": {768: 1.0}}, "logit_bias names token 768, outside the vocabulary of 768"),
        ({"logit_bias": {"7": 1.0}}, "logit_bias names '7', it must be the id of a token"),
        ({"logit_bias": {7: 101}}, "logit_bias of token 7 is 101, it must be from -100 to 100"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minillm.load(dtype="float32").completion("Once", **options)
