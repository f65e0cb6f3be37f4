"""The throughput of many sequences: what is asked for is what runs, and is what is counted."""

from __future__ import annotations

import json

import pytest

from minillm.bench import __main__ as bench
from minillm.bench.throughput import drawn, measure
from minillm.hub import DEMO
from minillm.loading import load


def test_requests_are_the_same_for_the_same_seed_and_within_their_bounds() -> None:
    llm = load()
    rows, again, other = (drawn(llm, 40, 3, 9, seed) for seed in (1, 1, 2))
    assert [(row.prompt, row.max_new_tokens, row.seed) for row in rows] == [
        (row.prompt, row.max_new_tokens, row.seed) for row in again
    ]
    assert [row.prompt for row in rows] != [row.prompt for row in other]
    assert {len(row.prompt) for row in rows} == {row.max_new_tokens for row in rows} == set(range(3, 10))


def test_every_sequence_runs_to_its_end() -> None:
    llm = load()
    rows = drawn(llm, 9, 2, 7, 0)
    report = measure(llm, rows, 4)
    assert [len(row.token_ids) for row in rows] == [row.max_new_tokens for row in rows]
    assert report["new_tokens"] == sum(row.max_new_tokens for row in rows)
    assert report["prompt_tokens"] == sum(len(row.prompt) for row in rows)
    assert report["new_tok_s"] == pytest.approx(report["new_tokens"] / report["seconds"])
    assert 1 < report["rows_per_step"] <= 4


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["throughput", "--weights", str(DEMO), "--sequences", "5", "--least", "2", "--most", "6"]
    assert bench.main(given) == 0
    line, _, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert (report["shape"], report["sequences"], report["max_batch"]) == ("demo", 5, 5)
    assert f"{report['new_tok_s']:.0f} new tok/s" in line
    assert bench.main([*given[:-1], "9999"]) == 2
    assert "--most 9999" in capsys.readouterr().err
