"""Many requests at once: who shares a pass, who leaves it and when it is read changes nothing of what comes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import ops
from minillm.engine.batching.engine import Engine
from minillm.engine.batching.running import generate
from minillm.engine.completion import Timings
from minillm.ops import draw
from minillm.spec import Decoder as Spec
from tests.helpers import tiny
from tests.helpers.loops import contiguous, listening, requests, texts
from tests.helpers.specs import random_tokens, specs

lengths = st.lists(st.integers(1, 14), min_size=2, max_size=5)
stops = st.sets(st.integers(0, 30), max_size=6)


def prompts_of(lengths: list[int]) -> list[list[int]]:
    return [random_tokens(length, seed=i).tolist() for i, length in enumerate(lengths)]


def run(model, rows, **options) -> tuple[list[tuple[int, str]], Timings]:
    timings = Timings()
    return list(generate(model, rows, timings, **options)), timings


@settings(max_examples=25)
@given(
    specs(), lengths, stops, st.sampled_from((torch.float32, torch.bfloat16)), st.integers(1, 5), st.integers(0, 3),
    st.sampled_from(({}, {"temperature": 1.0}, {"temperature": 0.9, "repetition_penalty": 1.3})), st.booleans(),
)  # fmt: skip
def test_a_deterministic_batch_is_its_prompts_alone(
    spec: Spec,
    lengths: list[int],
    stops: set[int],
    dtype: torch.dtype,
    max_rows: int,
    lag: int,
    choice: dict,
    compiled: bool,
) -> None:
    """Token for token and bit for bit, whatever shares the batch, leaves it or waits; alone without the flag, too."""
    model, together = listening(spec, dtype, compiled=compiled)
    rows = requests(prompts_of(lengths), 12, stops, **choice)
    run(model, rows, max_rows=max_rows, deterministic=True, lag=lag)
    model, alone = listening(spec, dtype, compiled=compiled)
    for number, row in enumerate(requests(prompts_of(lengths), 12, stops, **choice)):
        run(model, [row], deterministic=number % 2 == 0)
        assert texts([row]) == texts([rows[number]])
    for key, logits_V in alone.logits.items():
        assert torch.equal(together.logits[key], logits_V), key


@pytest.mark.parametrize(
    "row", ["llama", "mistral-window", "deepseek_v3", "gemma2", "phi3-long", "gemma3n", "deepseek_v4-all"]
)
@pytest.mark.parametrize("max_rows", [1, 3, 8])
def test_prompts_wait_for_a_place(row: str, max_rows: int, tmp_path: Path) -> None:
    """Nine prompts of mixed lengths, of which some end early, through a batch of any size."""
    tiny.save(tmp_path, *tiny.ROWS[row])
    model, sizes = minillm.load(tmp_path).model, []
    prompts = [tiny.tokens(97, 1 + 5 * i % 41, seed=i).tolist() for i in range(9)]
    model.ops = replace(model.ops, sample=lambda *given: sizes.append(len(given[0])) or draw.sample(*given))
    rows, alone = requests(prompts, 22, set(range(8))), requests(prompts, 22, set(range(8)))
    _, timings = run(model, rows, max_rows=max_rows)
    assert max(sizes) <= max_rows
    for single in alone:
        run(model, [single])
    assert texts(rows) == texts(alone)
    assert len({len(single.token_ids) for single in alone}) > 3
    assert timings.prompt_tokens == sum(map(len, prompts))
    assert timings.decode_tokens == sum(len(single.token_ids) - 1 for single in alone)


@pytest.mark.parametrize(
    "row",
    ["llama-dynamic-beyond", "phi3-long", "qwen3_next", "gemma4-apart", "gemma3n", "deepseek_v3", "deepseek_v4-all"],
)
def test_blocks_hold_what_a_contiguous_cache_holds(row: str, tmp_path: Path) -> None:
    """The same text as from a loop of its own over a cache of its own: lengths at which rotations change, prompts of a
    single token after longer ones had the same blocks, prefixes that are there, one of them whole, and a request that
    is computed anew."""
    tiny.save(tmp_path, *tiny.ROWS[row])
    model = minillm.load(tmp_path, dtype="float32").model
    text = tiny.tokens(97, 60, seed=3).tolist()
    prompts = [text[:50], text[:1], text[:33], text[40:41], text[:28], text[:48]]
    alone, rows = (requests(prompts, 30, temperature=0.8) for _ in range(2))
    for each in alone:
        contiguous(model, each)
    made = Engine(model, 96, max_rows=2, budget=20)
    going = [made.add(each) for each in rows]
    for _ in range(1000):
        made.step()
    assert not made.busy
    assert texts(rows) == texts(alone)
    assert any(each.cached for each in going)


@pytest.mark.parametrize(("row", "found"), [("llama", 32), ("gemma3", 32), ("qwen3_next", 0)])
def test_of_a_prompt_that_is_all_there_the_last_token_is_read(row: str, found: int, tmp_path: Path) -> None:
    """So its last block is not used; and a state is kept where a prompt of 50 tokens has its last whole block."""
    tiny.save(tmp_path, *tiny.ROWS[row])
    model = minillm.load(tmp_path, dtype="float32").model
    text = tiny.tokens(97, 50, seed=3).tolist()
    made = Engine(model, 160, max_rows=1)
    first, again = (made.add(each) for each in requests([text, text[:48]], 8))
    (alone,) = requests([text[:48]], 7)
    list(generate(model, [alone], Timings()))
    for _ in range(100):
        made.step()
    assert (first.cached, again.cached) == (0, found)
    assert again.row.token_ids == alone.token_ids


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"presence_penalty": 1.0, "repetition_penalty": 1.5}])
def test_reading_late_changes_nothing(options: dict) -> None:
    """With any lag the same pieces in the same order, and the same counts: what came behind a stop is thrown away."""
    llm = minillm.load(dtype="float32")
    found = []
    for lag in (0, 1, 3, 50):
        rows = [llm.completion(text, max_new_tokens=60, seed=4, **options) for text in ("Once", "One sunny day", "A")]
        rows += [llm.completion("Once upon a time", max_new_tokens=7, seed=5, **options)]
        events, timings = run(llm.model, rows, lag=lag)
        counts = (timings.prompt_tokens, timings.decode_tokens, timings.decode_steps)
        found.append((events, counts, texts(rows)))
    assert len(found[0][0]) > 60
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("lag", [0, 3])
def test_logits_that_are_no_numbers_are_noticed_late_too(lag: int) -> None:
    """Row 1 has none to choose by at its fifth token; that row 0 has none then does not matter, as it has finished."""
    llm = minillm.load(dtype="float32")

    def broken(*given: torch.Tensor) -> torch.Tensor:
        tokens, (seed, position) = draw.sample(*given), given[-2:]
        return tokens.masked_fill((position == 4) & (seed <= number), -1)

    llm.model.ops = replace(ops.CPU, sample=broken)
    for number in (0, 1):
        rows = [llm.completion("Once", max_new_tokens=most, temperature=1.0, seed=seed, ignore_eos=True)
                for seed, most in ((0, 4), (1, 20))]  # fmt: skip
        if number == 0:
            run(llm.model, rows, lag=lag)
            assert [len(row.token_ids) for row in rows] == [4, 20]
        else:
            with pytest.raises(ValueError, match="not finite"):
                run(llm.model, rows, lag=lag)
            assert len(rows[1].token_ids) == 4


@pytest.mark.parametrize("deterministic", [False, True])
def test_rows_that_have_finished_leave_at_once(deterministic: bool) -> None:
    llm, found = minillm.load(dtype="float32"), []
    limits = [5, 10, 15, 20, 25, 30, 35, 40]
    llm.model.ops = replace(ops.CPU, sample=lambda *given: found.append(len(given[0])) or draw.sample(*given))
    rows = [llm.completion(f"Once {most}", max_new_tokens=most, ignore_eos=True) for most in limits]
    run(llm.model, rows, deterministic=deterministic)
    together = [sum(most > step for most in limits) for step in range(max(limits))]
    assert found == ([1] * sum(limits) if deterministic else together)
