"""HTTP against the engine alone: the same requests through both, all of them answered whole."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

import minillm
from minillm.bench import __main__ as bench
from minillm.bench import alone as process
from minillm.bench.client import address
from minillm.bench.http import Behind, measure, parser
from tests.conftest import exit_code
from tests.helpers.server import Running, serve


@pytest.fixture(scope="module")
def llm() -> minillm.LLM:
    return minillm.load(dtype="float32")


def test_both_are_asked_the_same(llm: minillm.LLM) -> None:
    """In this process; the first round and the one with /health count for nothing."""
    server, engine = Running(serve(llm, "model")), minillm.Engine(llm, cache_memory=2e7)
    try:
        asked: list[Any] = []

        def round_(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
            asked.append((prompts, new_tokens))
            return process.answer(llm, engine, prompts, new_tokens)

        alone: Any = SimpleNamespace(facts={"vocabulary": llm.spec.vocab_size}, round=round_)
        behind = Behind.__new__(Behind)
        behind.where = address(server.url)
        given = parser().parse_args("--concurrency 3 --prompt-tokens 5 --new-tokens 4 --rounds 2".split())
        found = measure(given, alone, behind)
        rows = server.log
    finally:
        server.stop()
        engine.close()
        server.service.close()
    assert [(len(prompts), new) for prompts, new in asked] == [(3, 4), (1, 2)] * 3
    sizes = [(row["prompt"], row["completion"]) for row in rows if row["path"] == "/v1/completions"]
    assert sorted(sizes) == sorted([(5, 4)] * 3 * (3 + 1) + [(5, 2)] * 3)
    texts = {tuple(prompt) for prompts, _ in asked for prompt in prompts}
    assert len(texts) == 3 * (3 + 1)  # none is in the cache already
    assert len(found["ratios"]) == len(found["first_tokens_later_s"]) == 2
    assert min(found["ratios"]) <= found["ratio"] <= max(found["ratios"])
    assert found["http_tok_s"] > 0
    assert 0 < found["health_s"]["p50"] <= found["health_s"]["p99"]


def test_a_server_that_answers_less_is_no_measurement(llm: minillm.LLM) -> None:
    server = Running(serve(llm, "other"))
    try:
        behind = Behind.__new__(Behind)
        behind.where = address(server.url)
        with pytest.raises(ValueError, match="a request was not answered: 404"):
            asyncio.run(behind.round([[1, 2]], 2))
    finally:
        server.stop()
        server.service.close()


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for given, word in ((["--rounds", "0"], "at least 1"), (["--weights", "a", "--random", "qwen3-0.6b"], "exclude")):
        assert exit_code(bench.main, ["http", *given]) == 2
        assert word in capsys.readouterr().err
