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
from minillm import generate as command
from minillm.engine.batching.engine import Engine
from minillm.engine.batching.guessing import Guesser, Wanted
from minillm.engine.batching.proposers import Draft, Lookup
from minillm.engine.batching.request import Request
from minillm.engine.batching.room import BUDGET
from minillm.engine.batching.running import generate
from minillm.engine.completion import Completion, Timings
from minillm.engine.sampling import Sampling, probabilities
from minillm.hub import DEMO
from minillm.model.decoder import Decoder
from minillm.spec import GQA, GatedMLP, Layer, Norm, Rope
from minillm.spec import Decoder as Spec
from tests.conftest import exit_code
from tests.helpers import tiny
from tests.helpers.loops import always, contiguous, listening, requests, texts
from tests.helpers.specs import build, random_tokens, specs

PROMPT = "Once upon a time"


def guessing(model: Decoder, rows: list[Completion], draft: Decoder | None, count: int) -> Timings:
    """Run rows together with guesses by a draft, or by looking up three tokens, whether they pay or not."""
    timings = Timings()

    def made(positions: int, most: int) -> Guesser:
        return always(Draft(draft, model, positions, most, BUDGET, timings) if draft else Lookup(3), count)

    list(generate(model, rows, timings, guesser=made))
    return timings


@settings(max_examples=30)
@given(
    specs(), st.none() | specs(), st.lists(st.integers(1, 14), min_size=1, max_size=4), st.integers(1, 6),
    st.sets(st.integers(0, 30), max_size=3),
    st.sampled_from(({}, {"temperature": 1.0}, {"temperature": 0.9, "top_p": 0.8, "frequency_penalty": 0.5})),
    st.booleans(),
)  # fmt: skip
def test_with_guesses_the_text_is_the_same(
    spec: Spec, drawn: Spec | None, lengths: list[int], count: int, stops: set[int], choice: dict, compiled: bool
) -> None:
    """Token for token, whoever guesses and whatever shares the pass."""
    prompts = [random_tokens(length, seed=i).tolist() for i, length in enumerate(lengths)]
    expected, rows = requests(prompts, 14, stops, **choice), requests(prompts, 14, stops, **choice)
    model, _ = listening(spec, compiled=compiled)
    for row in expected:
        contiguous(model, row)
    guessing(model, rows, build(drawn, seed=1) if drawn else None, count)
    assert texts(rows) == texts(expected)


KINDS = [
    "llama",
    "mistral-window",
    "gemma2",
    "deepseek_v3",
    "llama-dynamic-beyond",
    "phi3-long",
    "qwen3_moe",
    "gpt_oss",
    "deepseek_v4-all",
    "gemma4",
    "qwen3_next",
    "olmo_hybrid",
    "lfm2",
    "granitemoehybrid",
    "glm_moe_dsa",
    "minimax_m3-indexed",
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
    for each in expected:
        contiguous(model, each)
    timings = guessing(model, rows, draft, 4)
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
        timings = guessing(target, rows, guesser, 2)
        return Counter(tuple(row.token_ids) for row in rows), timings

    taken = Engine._taken

    def believing(engine: Engine, request: Request, drawn: list[int]) -> list[tuple[Request, str]]:
        return taken(engine, request, [*request.guesses, drawn[-1]])

    counts, timings = counted(model, draft)
    assert p_value(counts, expected) > 1e-6
    assert 0.2 < timings.accepted_tokens / timings.drafted_tokens < 0.9
    assert p_value(counted(draft, None)[0], expected) < 1e-6
    monkeypatch.setattr(Engine, "_taken", believing)
    assert p_value(counted(model, draft)[0], expected) < 1e-6


@pytest.fixture(scope="module")
def llm() -> minillm.LLM:
    return minillm.load(dtype="float32")


@pytest.fixture
def whatever_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guesser, "_pays", lambda *_: True)


@pytest.mark.usefixtures("whatever_it_costs")
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


@pytest.mark.usefixtures("whatever_it_costs")
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
        list(generate(model, plain, Timings()))
        timings = guessing(model, rows, draft, 3)
        assert texts(rows) == texts(plain)
        assert timings.drafted_tokens > 20


class Wrong:
    """Guesses what never comes."""

    cost = 0.0

    def propose(self, wanted: Wanted) -> list[list[int]]:
        return [[(request.row.sequence[-1] + 1) % 2 + 700] * count for request, count in wanted]


def test_guesses_that_do_not_pay_are_left_out_for_a_while(llm: minillm.LLM) -> None:
    """After seven wrong ones in a row the average, 0.8^7, is below the quarter that eight rows need at least; tries
    follow 32 tokens apart. A request that wants none has none."""
    rows = [llm.completion(PROMPT, max_new_tokens=100, ignore_eos=True, temperature=1.0, seed=n) for n in range(8)]
    timings, tried = Timings(), []

    def made(positions: int, most: int) -> Guesser:
        guesser = Guesser(Wrong(), 2)
        saw = guesser.saw
        guesser.saw = lambda request, *counts: (tried.append((request.number, request.length)), saw(request, *counts))
        return guesser

    list(generate(llm.model, rows, timings, guesser=made))
    first = [length - len(rows[0].prompt) for number, length in tried if number == 0]
    assert first == [2, 3, 4, 5, 6, 7, 8, 40, 72]


@pytest.mark.usefixtures("whatever_it_costs")
def test_several_prompts_run_together(llm: minillm.LLM) -> None:
    prompts = [PROMPT, "There", "One sunny day"]
    expected = [result.token_ids for result in llm.generate(prompts, max_new_tokens=30)]
    for ways in ({"draft": llm}, {"prompt_lookup": 3}, {"draft": llm, "max_batch": 2}):
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
        ({"deterministic": True, "prompt_lookup": 2}, "guesses save nothing; leave out one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            llm.generate(PROMPT, max_new_tokens=2, **ways)


@pytest.mark.usefixtures("whatever_it_costs")
def test_the_command_says_how_many_were_right(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompt", PROMPT, "--max-new-tokens", "41", "--dtype", "float32"]
    assert command.main(flags) == 0
    text = capsys.readouterr().out
    assert command.main([*flags, "--draft", str(DEMO)]) == 0
    out, err = capsys.readouterr()
    assert out == text
    assert "32 of 32 drafted tokens accepted (100%), 5.00 tokens per step" in err
    assert command.main([*flags, "--prompt-lookup", "--draft-tokens", "2", "--json"]) == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert timings["acceptance_rate"] == timings["accepted_tokens"] / timings["drafted_tokens"] < 1
    assert timings["tokens_per_step"] == 40 / timings["decode_steps"] > 1
    assert command.main([*flags, "--json", "--deterministic"]) == 0
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
    assert exit_code(command.main, ["--prompt", "x", "--max-new-tokens", "1", *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
