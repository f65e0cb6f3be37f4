"""Requests that were made to harm: each gets an answer below 500, with no trace of the inside, and the server lives on.

CVEs and reports that a case comes from stand beside it.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import minillm
from minillm.serve.apis.openai_chat import ChatBody
from tests.helpers.server import Running, serve

USER: list[Any] = [{"role": "user", "content": "Hi"}]
CHAT, TEXT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
INSIDE = re.compile(r"Traceback|File \"|site-packages|0x[0-9a-f]{6,}|/home/|/root/|/tmp/|\.py\b")
SECONDS = 0.4  # that a slow client has here


@pytest.fixture(scope="module")
def server(llm: minillm.LLM) -> Iterator[Running]:
    made = Running(
        serve(llm), max_body=1_000_000, header_timeout=SECONDS, body_timeout=SECONDS, idle_timeout=2, fold_system=True
    )
    yield made
    made.stop()
    made.service.close()


def deep(levels: int, inner: str = "1") -> str:
    return '{"a":' * levels + inner + "}" * levels


def chat(**changes: Any) -> str:
    return json.dumps({"messages": USER, "max_tokens": 1, **changes})


BODIES = {
    "nothing": "", "no object": "[]", "a text": '"x"', "null": "null", "empty": "{}",
    "cut": '{"messages": [',  # llamafile#116
    "NaN": '{"messages": [], "temperature": NaN}', "infinity": '{"messages": [], "temperature": 1e999}',
    "a lone surrogate": '{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "nested 100 000 times": '{"a":' * 100_000, "nested in a field": f'{{"messages": {deep(3000)}}}',
    "a long number": '{"n": ' + "9" * 5000 + "}", "a huge whole number": chat(n=10**30),
    "messages of text": chat(messages="hi"), "a message of text": chat(messages=["hi"]), "no role": chat(messages=[{}]),
    "an unknown role": chat(messages=[{"role": "robot", "content": "x"}]),
    "content of a number": chat(messages=[{"role": "user", "content": 5}]),
    "a part without a type": chat(messages=[{"role": "user", "content": [{}]}]),
    "a part of null": chat(messages=[{"role": "user", "content": [None]}]),
    "an image": chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]),
    "an unknown field of a message": chat(messages=[{"role": "user", "content": "x", "evil": 1}]),
    "calls of text": chat(messages=[{"role": "assistant", "tool_calls": "x"}]),
    "a call of null": chat(messages=[{"role": "assistant", "tool_calls": [None]}]),
    "a million answers": chat(n=1_000_000), "no answer": chat(n=0), "minus one": chat(n=-1),  # CVE-2026-34756
    "logprobs of all": chat(logprobs=True, top_logprobs=10**6), "top without logprobs": chat(top_logprobs=2),
    "max_tokens below": chat(max_tokens=-1), "max_tokens beyond": chat(max_tokens=2**62),
    "temperature below": chat(temperature=-1), "temperature beyond": chat(temperature=1e6),  # llama.cpp#19367
    "top_p below": chat(top_p=-1), "a text for a number": chat(temperature="0.5"),
    "true for a number": chat(top_p=True),
    "repetition of 0": chat(repetition_penalty=0), "top_k below": chat(top_k=-2), "min_p beyond": chat(min_p=1.5),
    "a bias of a word": chat(logit_bias={"word": 1}), "a bias beyond": chat(logit_bias={"1": 1e9}),
    "a bias of no token": chat(logit_bias={"99999999": 1}), "biases": chat(logit_bias={str(n): 1 for n in range(2000)}),
    "stops": chat(stop=["x"] * 5), "an empty stop": chat(stop=""), "a long stop": chat(stop="x" * 2000),
    "a stop of numbers": chat(stop=[1]), "stop ids": chat(stop_token_ids=[10**9]),
    "stop ids below": chat(stop_token_ids=[-1]),
    "stop ids of text": chat(stop_token_ids=["x"]),
    "a template": chat(chat_template="{{ 1 }}"),  # CVE-2025-62426 and the class of CVE-2024-34359
    "a renderer's argument": chat(chat_template_kwargs={"tokenize": True}),
    "another": chat(chat_template_kwargs={"add_generation_prompt": False}),
    "a template's list": chat(chat_template_kwargs={"enable_thinking": [1]}),
    "embeddings of a prompt": json.dumps({"prompt_embeds": "gASV", "prompt": "x"}),  # CVE-2025-62164
    "n_discard": chat(n_discard=-1),  # CVE-2026-21869
    "modalities": chat(modalities=["audio"]), "usage without a stream": chat(stream_options={"include_usage": True}),
    "an unknown option": chat(stream=True, stream_options={"x": 1}), "guided": chat(guided_regex="(a+)+$"),
    "format of text": chat(response_format="json"),
    "format without a schema": chat(response_format={"type": "json_schema"}),
    "format unknown": chat(response_format={"type": "xml"}), "salt": chat(cache_salt="x" * 1000),
    "effort": chat(reasoning_effort="huge"), "priority": chat(priority=10**9), "a seed beyond": chat(seed=2**70),
    "bytes": b'{"messages": "\xff\xfe"}',
}  # fmt: skip
SCHEMAS = {
    "a type of nothing": {"type": "stsring"},  # CVE-2025-48942
    "a pattern of nothing": {"type": "string", "pattern": "("},  # CVE-2025-48944
    "look-around": {"type": "string", "pattern": "(?=a)a"},
    "elsewhere": {"$ref": "http://127.0.0.1:1/x"},
    "deep": json.loads(deep(60, '{"type": "object"}')),
    "large": {"enum": [f"value {n}" for n in range(50_000)]},
    "a number": 5,
}


def fine(found: httpx.Response) -> None:
    assert 400 <= found.status_code < 500, found.text
    assert not INSIDE.search(found.text), found.text
    assert len(found.content) < 4000
    assert found.json()["error"]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/api/chat"])
def test_a_body(server: Running, path: str, body: str | bytes) -> None:
    fine(httpx.post(server.url + path, content=body, headers={"content-type": "application/json"}, timeout=30))
    assert httpx.get(server.url + "/health").status_code == 200


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_a_schema(tools_server: Running, schema: Any) -> None:
    """As the form of an answer, and as a tool's parameters."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    fine(tools_server.post(CHAT, {"messages": USER, "max_tokens": 1, "response_format": form}))
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    fine(tools_server.post(CHAT, {"messages": USER, "max_tokens": 1, "tools": [tool], "tool_choice": "required"}))
    assert tools_server.post(CHAT, {"messages": USER, "max_tokens": 1}).status_code == 200


OTHERS: list[tuple[str, Any]] = [
    (TEXT, {"prompt": []}), (TEXT, {"prompt": [[]]}), (TEXT, {"prompt": [1, "x"]}), (TEXT, {"prompt": [99999]}),
    (TEXT, {"prompt": [-1]}), (TEXT, {"prompt": [True]}), (TEXT, {"prompt": [1.5]}), (TEXT, {"prompt": ["x"] * 300}),
    (TEXT, {"prompt": ["x"] * 200, "n": 2}), (TEXT, {"prompt": "x", "suffix": "y"}),
    (TEXT, {"prompt": "x", "best_of": 20}),
    (TEXT, {"prompt": "x", "logprobs": 21}), (TEXT, {"prompt": "x", "max_tokens": 0}), (TEXT, {"prompt": [1] * 600}),
    (TEXT, {"prompt": {"a": 1}}), (TEXT, {"prompt": "\0" * 9000}),
    (MESSAGES, {"messages": USER}), (MESSAGES, {"messages": USER, "max_tokens": 0}),
    (MESSAGES, {"messages": USER, "max_tokens": 1, "thinking": {"type": "enabled", "budget_tokens": 5}}),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "tool_use", "name": "x"}]}], "max_tokens": 1}),
    (MESSAGES, {"messages": USER, "max_tokens": 1, "mcp_servers": [{"url": "http://127.0.0.1"}]}),
    (MESSAGES, {"messages": USER, "max_tokens": 1, "system": [{"type": "image"}]}),
    (RESPONSES, {"input": [5]}), (RESPONSES, {"input": [{"type": "file"}]}),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}),
    (RESPONSES, {"input": "x", "background": True}),
    (RESPONSES, {"input": "x", "text": {"format": {"type": "json_schema"}}}),
    (RESPONSES, {"input": "x", "tool_choice": {"type": "hosted"}}), (RESPONSES, {"input": "x", "max_output_tokens": 0}),
    ("/api/chat", {"messages": USER, "options": {"evil": 1}}), ("/api/chat", {"messages": USER, "format": "xml"}),
    ("/api/chat", {"messages": USER, "think": "much"}), ("/api/generate", {"prompt": "x", "images": ["aGk="]}),
    ("/api/generate", {"prompt": "x", "template": "{{ x }}"}), ("/api/show", {"model": "../../etc/passwd"}),
    ("/tokenize", {"prompt": 5}), ("/tokenize", {"messages": [5]}), ("/detokenize", {"tokens": [-1]}),
    ("/detokenize", {"tokens": [10**7]}), ("/detokenize", {"tokens": ["x"]}), ("/v1/embeddings", {"input": []}),
    ("/nothing", {}), ("/v1/models", {}), ("/invocations", {}), ("/v1/../../etc/passwd", {}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), OTHERS)
def test_other_routes(server: Running, path: str, body: Any) -> None:
    fine(server.post(path, body))


@pytest.mark.parametrize("name", sorted(ChatBody.REFUSED))
def test_what_is_not_done_is_refused_by_name(server: Running, name: str) -> None:
    found = server.post(CHAT, {"messages": USER, "max_tokens": 1, name: {"x": 1}})
    fine(found)
    assert name in found.json()["error"]["message"]
    assert server.post(CHAT, {"messages": USER, "max_tokens": 1, name: None}).status_code == 200


def test_an_error_is_no_longer_than_what_caused_it(server: Running) -> None:
    """Validators that repeat their input for each error make megabytes of kilobytes."""
    found = server.post(CHAT, {"messages": [{"role": "user", "content": [{"x": "y" * 50}] * 500}]})
    fine(found)


def raw(server: Running, data: bytes, seconds: float = 5) -> bytes:
    """What comes back for bytes on a connection, until it is closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as line:
        line.sendall(data)
        found = b""
        try:
            while part := line.recv(65536):
                found += part
        except TimeoutError:
            found += b"<still open>"
        except ConnectionResetError:
            pass
        return found


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"x: " + b"y" * 200_000 + b"\r\n\r\n",  # CVE-2025-48956
        HEAD + b"".join(b"h%d: 1\r\n" % n for n in range(20_000)) + b"\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        HEAD + b"content-length: -5\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://127.0.0.1/health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        HEAD + b"content-encoding: gzip\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
    ],
)  # fmt: skip
def test_bytes_that_are_no_request(server: Running, data: bytes) -> None:
    found = raw(server, data)
    assert found.startswith(b"HTTP/1.1 4") or found == b"", found[:200]
    assert not INSIDE.search(found.decode("latin-1"))
    assert httpx.get(server.url + "/health").status_code == 200


def test_two_lengths_are_refused(server: Running) -> None:
    """Request smuggling: a proxy in front may go by the other one."""
    body = chat().encode()
    lengths = b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % (len(body), len(body))
    found = raw(server, HEAD + lengths + body + b"\r\n0\r\n\r\n")
    assert b" 400 " in found
    assert b"send one of them" in found


def test_a_body_is_measured_while_it_comes(server: Running) -> None:
    """CVE-2026-55646: said to be too large, or larger than said."""
    assert b" 413 " in raw(server, HEAD + b"content-length: 2000000\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert b" 413 " in raw(server, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk * 20)


@pytest.mark.parametrize("data", [b"", b"POST /v1/ch", HEAD, HEAD + b"content-length: 10\r\n\r\n{", HEAD + b"x: y\r\n"])
def test_slow_clients_are_let_go(server: Running, data: bytes) -> None:
    """Slow loris: nothing, half a head, half a body."""
    found = raw(server, data, seconds=10 * SECONDS + 5)
    assert b"<still open>" not in found
    if b"{" in data:
        assert b" 408 " in found


def test_a_head_that_drips_is_let_go(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.settimeout(0.05)
        for byte in HEAD * 20:
            try:
                line.sendall(bytes([byte]))
                if line.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    pytest.fail("the server waited for ever")


def test_a_client_that_leaves_during_its_upload(server: Running, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
    time.sleep(0.2)
    assert httpx.get(server.url + "/health").status_code == 200
    assert "Traceback" not in capfd.readouterr().err
    assert [each["status"] for each in server.log if each.get("status") == 499]


def test_the_log_is_one_line_each(server: Running) -> None:
    """A path or an id with control characters makes no line of its own."""
    server.log.clear()
    httpx.request("GET", httpx.URL(server.url, raw_path=b"/x%0a%1b[31mfake"), headers={"x-request-id": "a b"})
    assert server.idle()
    (line,) = server.log
    assert line["path"] == "/x\n\x1b[31mfake"  # which was escaped in the line
    assert line["id"] != "a b"


def test_a_fault_of_our_own_shows_nothing(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret at 0xdeadbeef01 in /root/x.py")

    monkeypatch.setattr(server.service.models, "find", broken)
    found = server.post(CHAT, {"messages": USER})
    assert found.status_code == 500
    assert not INSIDE.search(found.text)
    assert "secret" not in found.text
    assert server.idle()
    assert "secret" in server.log[-1]["fault"]


def test_who_needs_no_key_can_leave_nothing_in_memory(server: Running) -> None:
    assert httpx.request("GET", server.url + "/health", content=b"x" * 1000).status_code == 413
    assert httpx.get(server.url + "/health").status_code == 200
