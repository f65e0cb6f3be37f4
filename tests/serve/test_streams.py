"""Streams and their ends: clients that leave, clients that read slowly, signs of life, many at once."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import minillm
from minillm.serve import service
from tests.helpers.server import Running, serve

Start = Callable[..., Running]
CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me a story"}], "ignore_eos": True}


def leave(url: str, body: dict[str, Any], stream: bool) -> None:
    """Ask, and go away before the answer is there."""
    body = {**body, "stream": stream}
    if stream:
        with httpx.stream("POST", url, json=body, timeout=20) as answer:
            next(answer.iter_raw())
    else:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(url, json=body, timeout=0.3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses", "/api/chat"])
def test_a_client_that_leaves_ends_its_request(scripted: Start, path: str, stream: bool) -> None:
    """llama.cpp#24496, vllm#54947: streaming or not."""
    server = scripted("word " * 400, wait=0.02)
    fields = {"/v1/messages": {"max_tokens": 300}, "/v1/responses": {"input": "x"}}.get(path, {})
    messages = {} if "input" in fields else {"messages": LONG["messages"]}
    leave(server.url + path, {**messages, **fields}, stream)
    assert server.idle()
    (row,) = server.service.models.loaded[0].engine.rows  # type: ignore[attr-defined]
    assert row.finish_reason == "cancelled"
    assert not server.service.jobs
    assert server.log[-1]["finish"] == ["abort"]


@pytest.mark.parametrize("stream", [False, True])
def test_its_place_in_the_engine_is_free_again(server: Running, stream: bool) -> None:
    leave(server.url + "/v1/completions", {"prompt": "x", "n": 8, "ignore_eos": True, "max_tokens": 500}, stream)
    assert server.idle()
    engine = server.service.models.loaded[0].engine.engine
    assert all(not blocks.users for blocks in engine.store.groups.values())
    assert server.log[-1]["completion"] < 8 * 500


def test_silence_has_signs_of_life(scripted: Start) -> None:
    """What proxies need while a prompt is read; in each API's own way."""
    server = scripted("a", "b", "c", wait=0.5, keep_alive=0.1)
    found = server.post(CHAT, {**LONG, "stream": True}).text
    assert found.count(": keep-alive\n\n") >= 3
    found = server.post("/v1/messages", {"messages": LONG["messages"], "max_tokens": 9, "stream": True}).text
    assert found.count("event: ping") >= 4
    found = server.post("/v1/responses", {"input": "x", "stream": True}).text
    assert found.count(": keep-alive\n\n") >= 3


def test_nothing_waits_for_the_client_to_confirm_what_it_has(server: Running) -> None:
    """Nagle's algorithm: on connections that are used again each answer would wait 40 ms."""
    with httpx.Client() as client:
        client.get(server.url + "/health")
        (connection, *_) = server.server.server_state.connections
        made = connection.transport.get_extra_info("socket")
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_headers_of_a_stream(server: Running) -> None:
    found = server.post(CHAT, {**LONG, "max_tokens": 2, "stream": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    assert (found.headers["cache-control"], found.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert found.text.endswith("data: [DONE]\n\n")


def test_the_token_that_ends_an_answer_is_no_part_of_it(scripted: Start) -> None:
    """Nor of its ids, however they come: here one by one."""
    server = scripted("A cat sat.", wait=0.01)
    body = {**LONG, "ignore_eos": False, "stream": True, "return_token_ids": True}
    said = [line for line in server.post(CHAT, body).text.split("data: ") if line.startswith("{")]
    found = [token for each in said for token in json.loads(each)["choices"][0].get("token_ids", [])]
    tokenizer = server.service.models.loaded[0].llm.tokenizer
    assert tokenizer is not None
    assert found == tokenizer.encode("A cat sat.", special=False)


def test_what_breaks_in_the_middle_is_an_event(scripted: Start) -> None:
    """The engine's own words stay in the log."""
    for path, body, sign in [
        (CHAT, {**LONG, "stream": True}, '{"error":{"message"'),
        ("/v1/messages", {"messages": LONG["messages"], "max_tokens": 99, "stream": True}, "event: error"),
        ("/v1/responses", {"input": "x", "stream": True}, '"type":"error"'),
        ("/api/chat", {"messages": LONG["messages"]}, '{"error":"'),
    ]:
        server = scripted("one two three four five six", wait=0.05)
        engine: Any = server.service.models.loaded[0].engine
        with httpx.stream("POST", server.url + path, json=body, timeout=20) as answer:
            text = ""
            for piece in answer.iter_text():
                text += piece
                if "t" in text and engine.rows[0].token_ids:
                    engine.rows[0].finish_reason = "deadline"
        assert sign in text, text
        assert "longer than this server allows" in text


def test_who_reads_nothing_is_let_go(llm: minillm.LLM) -> None:
    server = Running(serve(llm), write_timeout=0.3)
    try:
        body = b'{"messages": [{"role": "user", "content": "hi"}], "n": 32, "logprobs": true, "top_logprobs": 20, '
        body += b'"stream": true, "ignore_eos": true, "max_tokens": 300}'
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.connect(("127.0.0.1", server.port))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        line.sendall(head + body)
        until = time.monotonic() + 60
        while not server.log and time.monotonic() < until:
            time.sleep(0.05)
        line.close()
        assert server.log[-1]["client"] == "took nothing any more"
        assert server.post(CHAT, {**LONG, "max_tokens": 1}).status_code == 200
    finally:
        server.stop()
        server.service.close()


def test_a_full_queue_says_come_again(llm: minillm.LLM) -> None:
    server = Running(serve(llm, max_rows=1, max_waiting=1))
    try:

        async def all_of_them() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=60) as client:
                body = {**LONG, "max_tokens": 100}
                return await asyncio.gather(*(client.post(server.url + CHAT, json=body) for _ in range(6)))

        found = asyncio.run(all_of_them())
        assert sorted({each.status_code for each in found}) == [200, 503]
        busy = next(each for each in found if each.status_code == 503)
        assert (busy.headers["retry-after"], busy.headers["x-should-retry"]) == ("2", "true")
        assert busy.json()["error"]["type"] == "overloaded_error"
        assert b'admission_rejections_total{reason="overloaded"}' in httpx.get(server.url + "/metrics").content
    finally:
        server.stop()
        server.service.close()


def test_many_at_once_get_what_they_get_alone(llm: minillm.LLM, server: Running) -> None:
    """64 clients: some leave, some ask what cannot be, the others' texts are those of `generate`."""
    draw = random.Random(0)
    prompts = [f"Once upon a time there was a {word}" for word in "cat dog bird fish horse girl boy king".split()]
    expected = {prompt: llm.generate(prompt, max_new_tokens=24).text for prompt in prompts}

    async def one(client: httpx.AsyncClient, n: int) -> str:
        prompt, kind = prompts[n % len(prompts)], draw.choice(["whole", "stream", "leave", "bad"])
        body = {"prompt": prompt, "max_tokens": 24, "temperature": 0}
        url = server.url + "/v1/completions"
        await asyncio.sleep(draw.random() * 0.3)
        if kind == "bad":
            assert (await client.post(url, json={**body, "top_p": 7})).status_code == 400
        elif kind == "whole":
            assert (await client.post(url, json=body)).json()["choices"][0]["text"] == expected[prompt]
        elif kind == "leave":
            async with client.stream("POST", url, json={**body, "stream": True, "max_tokens": 400}) as answer:
                async for _ in answer.aiter_raw():
                    break
        else:
            text = ""
            async with client.stream("POST", url, json={**body, "stream": True}) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        text += json.loads(line[6:])["choices"][0]["text"]
            assert text == expected[prompt]
        return kind

    async def all_of_them() -> list[str]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            return await asyncio.gather(*(one(client, n) for n in range(64)))

    assert set(asyncio.run(all_of_them())) == {"whole", "stream", "leave", "bad"}
    assert server.idle()
    assert not server.service.jobs
    engine = server.service.models.loaded[0].engine.engine
    assert all(not blocks.users for blocks in engine.store.groups.values())


def test_health_answers_while_the_engine_works_and_tells_when_it_does_not(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.service.models.loaded[0].engine
    stuck = {"alive": True, "running": 1, "waiting": 0, "seconds_since_step": 1e6}
    assert httpx.get(server.url + "/health").status_code == 200
    monkeypatch.setattr(engine, "health", lambda: stuck)
    assert httpx.get(server.url + "/health").status_code == 503
    monkeypatch.setattr(engine, "health", lambda: {**stuck, "alive": False, "seconds_since_step": 0})
    assert httpx.get(server.url + "/ready").status_code == 503


def test_metrics_count(server: Running) -> None:
    def value(name: str) -> float:
        lines = httpx.get(server.url + "/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    before = [value("minillm:generation_tokens_total"), value("minillm:e2e_request_latency_seconds_count")]
    server.post(CHAT, {**LONG, "max_tokens": 7})
    assert server.idle()
    assert value("minillm:generation_tokens_total") == before[0] + 7
    assert value("minillm:e2e_request_latency_seconds_count") == before[1] + 1
    assert value("minillm:num_requests_running") == 0


def test_what_is_being_read_when_the_server_stops_is_told_to_come_again(
    scripted: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would begin after the server has waited for all others, and be cut off."""
    server = scripted("word " * 10)
    prepare = service.prepare

    def late(*given: Any) -> Any:
        server.service.draining = True
        return prepare(*given)

    monkeypatch.setattr(service, "prepare", late)
    answer = server.post(CHAT, {"messages": LONG["messages"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


def test_reasoning_is_counted_once(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With usage in each chunk: as much work as there is text, not its square."""
    server = scripted("<think>" + "so and so " * 20 + "</think>yes")
    tokenizer = server.service.models.loaded[0].llm.tokenizer
    assert tokenizer is not None
    encode, sizes = tokenizer.encode, []

    def counted(text: str, *given: Any, **named: Any) -> Any:
        sizes.append(len(text))
        return encode(text, *given, **named)

    monkeypatch.setattr(tokenizer, "encode", counted)
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": LONG["messages"], "stream": True, "stream_options": options}
    answer = server.post(CHAT, body).text
    assert sum(sizes) < 600  # 200 characters, and the prompt
    *_, last = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] > 50
