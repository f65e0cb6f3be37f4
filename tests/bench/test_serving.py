"""A server under load: every request is sent once, as many at a time as asked, and counted as what it was."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.bench import __main__ as bench
from minillm.bench.client import Answer, _events, _pieces, address
from minillm.bench.serving import arriving, spread, summary, together, words
from tests.conftest import exit_code
from tests.helpers.stub_server import Stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub([{"content": "one"}, {"reasoning": "two"}, {"content": " three"}])
    yield made
    made.close()


def run(capsys: pytest.CaptureFixture[str], stub: Stub, *given: str) -> dict[str, Any]:
    assert bench.main(["serve", "--url", stub.url, "--model", "stub", *given]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])  # type: ignore[no-any-return]


def test_the_command(capsys: pytest.CaptureFixture[str], stub: Stub, tmp_path: Path) -> None:
    picture = tmp_path / "load.png"
    report = run(capsys, stub, "--concurrency", "1,3", "--requests", "7", "--plot", str(picture), "--ignore-eos")
    assert [row["concurrency"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        assert (row["requests"], row["answered"], row["errors"]) == (7, 7, {})
        assert (row["new_tokens"], row["prompt_tokens"], row["counted_by"]) == (21, 49, "server")
        assert row["new_tok_s"] == pytest.approx(21 / row["seconds"])
        for key in ("first_token_s", "between_tokens_s", "whole_s", "tok_s_per_request"):
            assert set(row[key]) == {"avg", "p50", "p95", "p99"}
        assert row["first_token_s"]["p99"] <= row["whole_s"]["p99"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(stub.requests) == 2 * (7 + 1)  # one goes before the clock starts
    sent = stub.requests[1]
    assert (sent["model"], sent["max_tokens"], sent["ignore_eos"], sent["stream"]) == ("stub", 64, True, True)
    first = [each["messages"][0]["content"].split()[0] for each in stub.requests]
    assert len(set(first)) > 12  # no two prompts have a beginning in common


def test_lines_of_a_file_are_asked_again_and_again(
    capsys: pytest.CaptureFixture[str], stub: Stub, tmp_path: Path
) -> None:
    (tmp_path / "prompts").write_text("first\n\nsecond\n")
    report = run(
        capsys,
        stub,
        "--prompts",
        str(tmp_path / "prompts"),
        "--runs",
        "3",
        "--rate",
        "500",
        "--endpoint",
        "completions",
    )
    (row,) = report["rows"]
    assert (row["rate"], row["answered"]) == (500, 6)
    assert sorted(each["prompt"] for each in stub.requests[1:]) == ["first"] * 3 + ["second"] * 3


def test_a_server_that_does_not_count(capsys: pytest.CaptureFixture[str], stub: Stub) -> None:
    stub.usage = False
    (row,) = run(capsys, stub, "--requests", "2")["rows"]
    assert (row["counted_by"], row["new_tokens"], row["prompt_tokens"]) == ("chunks", 6, None)


def test_what_goes_wrong_is_counted_apart(capsys: pytest.CaptureFixture[str], stub: Stub) -> None:
    ordinary, answers = list(stub.deltas), itertools.count()
    stream = stub.stream

    def every_third(body: Any, handler: Any) -> None:
        stub.deltas = [{"content": "x"}, {"error": "gone"}] if next(answers) % 3 == 2 else ordinary
        stream(body, handler)

    stub.stream = every_third  # type: ignore[method-assign]
    (row,) = run(capsys, stub, "--requests", "8")["rows"]
    assert (row["answered"], row["errors"]) == (5, {"gone": 3})
    assert row["new_tokens"] == 15


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concurrency", "1.5"], "whole numbers"), (["--rate", "0"], "above 0"), (["--requests", "0"], "at least 1"),
        (["--runs", "2"], "without --prompts"), (["--rate", "1", "--concurrency", "1"], "not allowed with"),
        (["--prompts", "absent"], "no such file"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], stub: Stub, arguments: list[str], said: str
) -> None:
    assert exit_code(bench.main, ["serve", "--url", stub.url, "--model", "stub", *arguments]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_server_that_refuses_or_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], stub: Stub) -> None:
    def said(url: str) -> str:
        assert exit_code(bench.main, ["serve", "--url", url, "--model", "stub"]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    stub.key = "secret"
    assert "401: a key is needed" in said(stub.url)
    stub.close()
    assert "ConnectionRefusedError" in said(stub.url)
    assert "no address" in said("ftp://x")
    assert "no address" in said("http://x:99999")


def test_a_key_comes_from_the_environment(
    capsys: pytest.CaptureFixture[str], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.key = "secret"
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert run(capsys, stub, "--requests", "1")["rows"][0]["answered"] == 1


def test_an_answer_that_does_not_end_in_time_is_an_error(capsys: pytest.CaptureFixture[str], stub: Stub) -> None:
    stub.deltas = [{"content": "x"}, {"pause": 30}]
    assert exit_code(bench.main, ["serve", "--url", stub.url, "--model", "s", "--timeout", "0.2"]) == 2
    assert "no end within" in capsys.readouterr().err


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_percentiles_are_numpys(values: list[float]) -> None:
    found = spread(values)
    assert found["avg"] == pytest.approx(np.mean(values))
    for share in (50, 95, 99):
        assert found[f"p{share}"] == np.percentile(values, share, method="inverted_cdf")


def test_so_many_are_under_way() -> None:
    state = {"now": 0, "most": 0}

    async def request() -> Answer:
        state["now"] += 1
        state["most"] = max(state["most"], state["now"])
        await asyncio.sleep(0)
        state["now"] -= 1
        return Answer(0.0)

    assert len(asyncio.run(together([request] * 20, 4))) == 20
    assert state["most"] == 4


def test_arrivals_do_not_wait_for_answers() -> None:
    async def main() -> int:
        gate, begun = asyncio.Event(), []

        async def request() -> Answer:
            begun.append(1)
            if len(begun) == 10:
                gate.set()
            await gate.wait()
            return Answer(0.0)

        return len(await arriving([request] * 10, 1000.0, random.Random(0)))

    assert asyncio.run(asyncio.wait_for(main(), 20)) == 10


def test_figures_are_of_the_answers() -> None:
    answers = [Answer(10.0, [10.5, 10.6, 10.8], 11.0, 4, 3), Answer(20.0, [20.1], 20.2, 4, 1), Answer(0.0, error="x")]
    row = summary(answers, 2.0)
    assert row["first_token_s"]["avg"] == pytest.approx(0.3)
    assert row["between_tokens_s"]["avg"] == pytest.approx(0.15)
    assert row["whole_s"]["avg"] == pytest.approx(0.6)
    assert row["tok_s_per_request"]["avg"] == pytest.approx((3 + 5) / 2)
    assert (row["new_tokens"], row["new_tok_s"], row["errors"]) == (4, 2.0, {"x": 1})


def test_chunks_are_read_however_they_are_cut() -> None:
    body = 'data: {"choices": [{"delta": {"content": "é"}}]}\r\n\r\n: hi\n\ndata: {"choices": [], "usage": ' + (
        '{"prompt_tokens": 3, "completion_tokens": 1}}\n\ndata: [DONE]\n\n'
    )
    data = body.encode()

    async def read(size: int) -> Answer:
        reader, answer = asyncio.StreamReader(), Answer(0.0)
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            reader.feed_data(b"%x;name=x\r\n%b\r\n" % (len(piece), piece))
        reader.feed_data(b"0\r\n\r\n")
        reader.feed_eof()
        await _events(answer, _pieces(reader, {"transfer-encoding": "chunked"}))
        return answer

    for size in range(1, len(data) + 1):
        answer = asyncio.run(read(size))
        assert (len(answer.times), answer.prompt_tokens, answer.tokens) == (1, 3, 1)


def test_addresses_may_have_the_path_that_clients_are_given() -> None:
    assert address("http://host:1/v1/").path == address("host:1").path == ""
    assert address("https://host/a/v1").path == "/a"


def test_words_are_the_same_for_the_same_seed() -> None:
    assert words(5, random.Random(1)) == words(5, random.Random(1)) != words(5, random.Random(2))
