"""Guessing tokens changes how fast they come and nothing else; and guesses are right as often as they can be."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import generate
from minillm.engine import speculative
from minillm.engine.batching import engine
from minillm.engine.choosing import foresee
from minillm.engine.completion import Completion, Timings
from minillm.engine.sampling import Sampling, probabilities
from minillm.engine.speculative import Draft, PromptLookup
from minillm.hub import DEMO
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder
from minillm.spec import GQA, GatedMLP, Layer, Norm, Rope
from minillm.spec import Decoder as Spec
from tests.conftest import exit_code
from tests.helpers import tiny
from tests.helpers.loops import Silent, listening, requests, texts
from tests.helpers.specs import EXACT, build, random_tokens, specs, uncut

PROMPT = "Once upon a time"


def guessing(model: Decoder, rows: list[Completion], draft: Decoder | None, count: int, deterministic: bool) -> Timings:
    """Run rows with guesses by a draft, or by looking up three tokens."""
    timings = Timings()
    made = (lambda row: Draft(draft, model, row, timings)) if draft else (lambda row: PromptLookup(3))
    list(speculative.generate(model, rows, timings, made, count, deterministic))
    return timings


@settings(max_examples=40)
@given(specs(), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 5))
@torch.no_grad()
def test_positions_taken_back_leave_no_trace(spec: Spec, pieces: list[int], wrong: int, slack: int) -> None:
    """Before each piece of a sequence others are read and taken back, some from within, rings included."""
    model, total = build(spec), sum(pieces)
    tokens, junk = random_tokens(1, total), random_tokens(1, 99, seed=7)
    cache, found = Cache(spec, 1, total + wrong + slack, torch.float32), []
    for piece in tokens.split(pieces, dim=1):
        count = min(wrong, cache.undoable)
        cache.mark(count)
        right = min(piece.shape[1], count // 2)
        found.append(model(piece[:, :right], cache) if right else piece.new_zeros(1, 0, 31))
        if count > right:
            model(junk[:, : count - right], cache)
        cache.rewind(cache.length - (count - right))
        if piece.shape[1] > right:
            found.append(model(piece[:, right:], cache))
    assert (torch.cat(found, dim=1) - uncut(model, tokens)).abs().max() <= EXACT


@settings(max_examples=30)
@given(
    specs(), st.none() | specs(), st.lists(st.integers(1, 14), min_size=1, max_size=2), st.integers(1, 6),
    st.sets(st.integers(0, 30), max_size=3), st.sampled_from((torch.float32, torch.bfloat16)),
    st.sampled_from(({}, {"temperature": 1.0}, {"temperature": 0.9, "top_p": 0.8, "frequency_penalty": 0.5})),
    st.booleans(),
)  # fmt: skip
def test_with_guesses_the_text_is_the_same(
    spec: Spec,
    drawn: Spec | None,
    lengths: list[int],
    count: int,
    stops: set[int],
    dtype: torch.dtype,
    choice: dict,
    compiled: bool,
) -> None:
    """Token for token, whoever guesses, and the logits behind each bit for bit: with compiled loops those of the
    engine, and in plain PyTorch, which sums over a ring of keys in another order, those without a guess."""
    prompts = [random_tokens(length, seed=i).tolist() for i, length in enumerate(lengths)]
    model, plain = listening(spec, dtype, compiled=compiled)
    expected, rows = requests(prompts, 14, stops, **choice), requests(prompts, 14, stops, **choice)
    for row in expected:
        if compiled:
            list(engine.generate(model, [row], Timings()))
        else:
            list(speculative.generate(model, [row], Timings(), lambda _: Silent(), deterministic=True))
    model, guessed = listening(spec, dtype, compiled=compiled)
    guessing(model, rows, build(drawn, seed=1) if drawn else None, count, deterministic=True)
    assert texts(rows) == texts(expected)
    for key, logits_V in plain.logits.items():
        assert torch.equal(guessed.logits[key], logits_V), key


KINDS = [
    "llama",
    "mistral-window",
    "gemma2",
    "deepseek_v3",
    "llama-dynamic-beyond",
    "phi3-long",
    "qwen3_moe",
    "gpt_oss",
    "gemma4",
    "gemma3n",
]


@pytest.mark.parametrize("row", KINDS)
@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.7}], ids=["greedy", "sampled"])
def test_every_kind_of_model(row: str, sampled: dict, tmp_path: Path) -> None:
    """In blocks, across the lengths at which rotations change; the draft is the model with one matrix a little off."""
    tiny.save(tmp_path, *tiny.ROWS[row])
    model, draft = minillm.load(tmp_path).model, minillm.load(tmp_path).model
    draft.layers[1].attention.out.weight.mul_(0.9)
    prompts = [tiny.tokens(97, length, seed=length).tolist() for length in (3, 20)]
    expected, rows = requests(prompts, 60, **sampled), requests(prompts, 60, **sampled)
    list(engine.generate(model, expected, Timings()))
    timings = guessing(model, rows, draft, 4, deterministic=False)
    assert texts(rows) == texts(expected)
    assert timings.accepted_tokens > timings.drafted_tokens // 4
    assert timings.decode_tokens == sum(len(each.token_ids) - 1 for each in rows) > timings.decode_steps


TINY = Norm(1e-5)
THREE = Spec(3, 8, (Layer(TINY, GQA(1, 1, 8, Rope(8, 100.0)), TINY, GatedMLP(8)),), TINY, False, context=16)


def chances(model: Decoder, prompt: list[int], length: int, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of each continuation of so many tokens."""
    found = {}
    for text in product(range(3), repeat=length):
        logits_TV = model(torch.tensor([[*prompt, *text]]))[0, len(prompt) - 1 : -1]
        steps = [probabilities(each, sampling)[token] for each, token in zip(logits_TV, text, strict=True)]
        found[text] = float(torch.stack(steps).prod())
    return found


def p_value(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of Pearson's chi-square test; 0 where something came that cannot."""
    total, possible = sum(counts.values()), {text: chance for text, chance in expected.items() if chance > 0}
    assert min(possible.values()) * total >= 5, "too few draws for the test to hold"
    if set(counts) - set(possible):
        return 0.0
    statistic = sum((counts[text] - total * chance) ** 2 / (total * chance) for text, chance in possible.items())
    half = torch.tensor([(len(possible) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@torch.no_grad()
def test_the_text_is_distributed_as_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 27 texts of three tokens, of which the last two come of guesses, over 600 seeds, against their exact
    probabilities: a right program fails once in a million. That the test has power shows in what the draft writes
    itself, and where its guesses are believed though the model draws otherwise."""
    model, draft = build(THREE, seed=8), build(THREE, seed=9)
    expected = chances(model, [1, 2], 3, Sampling(temperature=3.0))

    def counted(target: Decoder, guesser: Decoder | None) -> tuple[Counter[tuple[int, ...]], Timings]:
        rows = [Completion([1, 2], Sampling(temperature=3.0, seed=seed), 3) for seed in range(600)]
        timings = guessing(target, rows, guesser, 2, deterministic=False)
        return Counter(tuple(row.token_ids) for row in rows), timings

    def believing(model: Decoder, row: Completion, logits_TV: torch.Tensor, assumed: list[int]) -> list[int]:
        drawn = foresee(model, row, logits_TV, assumed)
        return [*assumed, drawn[-1]] if len(drawn) > 1 else drawn

    counts, timings = counted(model, draft)
    assert p_value(counts, expected) > 1e-6
    assert 0.2 < timings.accepted_tokens / timings.drafted_tokens < 0.9
    assert p_value(counted(draft, None)[0], expected) < 1e-6
    monkeypatch.setattr(speculative, "foresee", believing)
    assert p_value(counted(model, draft)[0], expected) < 1e-6


@pytest.mark.parametrize(
    ("text", "longest", "count", "expected"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 3, 2, [9, 1]),  # what followed 1 2 3
        ([1, 2, 9, 3, 2, 8, 1, 2], 2, 2, [9, 3]),  # 1 2 is longer than the later 2
        ([1, 2, 9, 3, 2, 8, 1, 2], 1, 3, [8, 1, 2]),  # the later 2
        ([7, 5, 5], 2, 4, [5, 5, 5, 5]),  # a text that repeats itself goes on to
        ([1, 2, 1, 2], 2, 5, [1, 2, 1, 2, 1]),
        ([1, 2, 3], 3, 4, []),
        ([1], 3, 4, []),
    ],
)
def test_what_followed_before(text: list[int], longest: int, count: int, expected: list[int]) -> None:
    """The whole text at once, and token by token as it grows."""
    row = Completion(text[:1], Sampling(), 99)
    grown = PromptLookup(longest)
    for token in text[1:]:
        grown.propose(row, count)
        row.push(token)
    assert grown.propose(row, count) == expected
    assert PromptLookup(longest).propose(Completion(text, Sampling(), 99), count) == expected


@pytest.fixture(scope="module")
def llm() -> minillm.LLM:
    return minillm.load(dtype="float32")


def test_it_stops_within_a_block(llm: minillm.LLM) -> None:
    """The model as its own draft guesses all right: stop tokens, stop strings and the limit fall within a block."""
    whole = llm.generate(PROMPT, max_new_tokens=200, draft=llm, draft_tokens=7)
    assert whole.token_ids == llm.generate(PROMPT, max_new_tokens=200).token_ids
    assert whole.finish_reason == "stop"
    assert whole.timings.accepted_tokens == whole.timings.drafted_tokens
    assert whole.timings.decode_steps == -(-(len(whole.token_ids) - 1) // 8)
    for most in range(1, 20):
        result = llm.generate(PROMPT, max_new_tokens=most, draft=llm, draft_tokens=7)
        assert (result.token_ids, result.finish_reason) == (whole.token_ids[:most], "length")
        assert result.timings.drafted_tokens + result.timings.decode_steps == most - 1  # no guess in vain
    stop = whole.text[60:70]
    result = llm.generate(PROMPT, max_new_tokens=200, stop=stop, draft=llm, draft_tokens=7)
    assert (result.text, result.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    pieces = list(llm.stream(PROMPT, max_new_tokens=200, prompt_lookup=2))
    assert "".join(pieces) == whole.text
    assert all(pieces)
    assert len(pieces) > 20


def test_a_draft_with_less_context_and_another_vocabulary(llm: minillm.LLM, tmp_path: Path) -> None:
    """It guesses as long as it can see the text, and no token that only the model knows."""
    expected = llm.generate(PROMPT, max_new_tokens=120, ignore_eos=True).token_ids
    folder = Path(shutil.copytree(DEMO, tmp_path / "short"))
    tiny.edit_config(folder, max_position_embeddings=40)
    result = llm.generate(PROMPT, max_new_tokens=120, ignore_eos=True, draft=minillm.load(folder, dtype="float32"))
    assert result.token_ids == expected
    assert 20 <= result.timings.accepted_tokens <= 40
    for size in (28, 40):
        model, draft = (
            build(THREE.__class__(**{**vars(THREE), "vocab_size": 31})),
            build(THREE.__class__(**{**vars(THREE), "vocab_size": size}), seed=2),
        )
        plain, rows = requests([[1, 2]] * 9, 9, temperature=1.5), requests([[1, 2]] * 9, 9, temperature=1.5)
        list(engine.generate(model, plain, Timings()))
        timings = guessing(model, rows, draft, 3, deterministic=True)
        assert texts(rows) == texts(plain)
        assert timings.drafted_tokens > 20


def test_several_prompts_run_one_after_the_other(llm: minillm.LLM) -> None:
    prompts = [PROMPT, "There", "One sunny day"]
    expected = [result.token_ids for result in llm.generate(prompts, max_new_tokens=30)]
    for ways in ({"draft": llm}, {"prompt_lookup": 3}, {"draft": llm, "deterministic": True}):
        assert [result.token_ids for result in llm.generate(prompts, max_new_tokens=30, **ways)] == expected


def test_what_cannot_be_is_refused(llm: minillm.LLM, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    tiny.save(tmp_path / "tiny", "llama", {})
    nameless = minillm.load(tmp_path / "tiny")
    for ways, message in (
        ({"draft": minillm.load(folder)}, "token 300 is .* in .* and .* in .*; take a draft with the model's vocab"),
        ({"draft": nameless}, "vocabulary has 97 tokens and the model's 768"),
        ({"draft": llm, "prompt_lookup": 2}, "give one of them"),
        ({"draft_tokens": 2}, "give draft or prompt_lookup too"),
        ({"draft": llm, "draft_tokens": 0}, "draft_tokens is 0"),
        ({"prompt_lookup": 2.5}, "prompt_lookup is 2.5"),
        ({"max_batch": True}, "max_batch is True"),
        ({"max_batch": 4, "prompt_lookup": 2}, "leave max_batch out"),
    ):
        with pytest.raises(ValueError, match=message):
            llm.generate(PROMPT, max_new_tokens=2, **ways)


def test_the_command_says_how_many_were_right(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--prompt", PROMPT, "--max-new-tokens", "41", "--dtype", "float32"]
    assert generate.main(command) == 0
    text = capsys.readouterr().out
    assert generate.main([*command, "--draft", str(DEMO), "--deterministic"]) == 0
    out, err = capsys.readouterr()
    assert out == text
    assert "32 of 32 drafted tokens accepted (100%), 5.00 tokens per step" in err
    assert generate.main([*command, "--prompt-lookup", "--draft-tokens", "2", "--json"]) == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert timings["acceptance_rate"] == timings["accepted_tokens"] / timings["drafted_tokens"] < 1
    assert timings["tokens_per_step"] == 40 / timings["decode_steps"] > 1
    assert generate.main([*command, "--json", "--deterministic"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["timings"]["acceptance_rate"] is None
    assert "--deterministic without effect" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--draft-tokens", "3"], "give --draft or --prompt-lookup too"),
        (["--draft", "x", "--prompt-lookup"], "not allowed with"),
        (["--draft", "/nowhere"], "/nowhere"),
        (["--prompt-lookup", "0"], "prompt_lookup is 0"),
    ],
)
def test_flags_that_do_not_fit(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(generate.main, ["--prompt", "x", "--max-new-tokens", "1", *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
