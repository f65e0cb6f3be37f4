"""What is bounded, refused or survived beside the bodies of `test_hostile.py`: counts, schemas that blow up, any text,
addresses that nobody may make the server ask, and who may ask how much at a time."""

from __future__ import annotations

import ast
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import minillm
from minillm.serve import app, doors, keys, service
from minillm.serve.__main__ import _parse, _settings
from minillm.serve.connection import Server
from minillm.serve.keys import Entry, Keys
from minillm.serve.models import Served
from minillm.serve.settings import MAX_MESSAGES, MAX_TOOLS
from tests.helpers.server import Running, Script, serve
from tests.serve.test_hostile import CHAT, INSIDE, MESSAGES, RESPONSES, TEXT, USER, fine

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ITEM = {"role": "user", "content": "x"}


def survived(server: Running, found: httpx.Response) -> None:
    assert found.status_code == 200 or 400 <= found.status_code < 500, found.text[:500]
    assert not INSIDE.search(found.text)
    assert httpx.get(server.url + "/health").status_code == 200
    assert not [each for each in server.log if "fault" in each]


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES, "/api/chat"])
def test_messages_and_tools_are_counted(tools_server: Running, path: str) -> None:
    name = "input" if path == RESPONSES else "messages"
    limit = {} if path in (RESPONSES, "/api/chat") else {"max_tokens": 1}
    many = tools_server.post(path, {name: [ITEM] * (MAX_MESSAGES + 1), **limit})
    fine(many)
    assert f"{MAX_MESSAGES:,}" in many.text
    tools = [{**TOOL["function"], "name": f"f{at}", "type": "function"} for at in range(MAX_TOOLS + 1)]  # type: ignore[dict-item]
    if path in (CHAT, "/api/chat"):
        tools = [{"type": "function", "function": {"name": f"f{at}"}} for at in range(MAX_TOOLS + 1)]
    elif path == MESSAGES:
        tools = [{"name": f"f{at}", "input_schema": {"type": "object"}} for at in range(MAX_TOOLS + 1)]
    too_many = tools_server.post(path, {name: [ITEM], "tools": tools, **limit})
    fine(too_many)
    assert str(MAX_TOOLS) in too_many.text


DOUBLED = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {"type": "null"}}
EXPLOSIONS: dict[str, Any] = {
    "nested groups": {"type": "string", "pattern": "(" * 30_000 + "a" + ")" * 30_000},  # what ends xgrammar 0.2.8
    "nested repeats": {"type": "string", "pattern": "((((a{1,50}){1,50}){1,50}){1,50})"},
    "backtracking": {"type": "string", "pattern": "^(a+)+$"},  # CVE-2026-55574
    "states": {"type": "string", "pattern": "(a|b)*a(a|b){300}"},
    "a literal": {"const": "x" * 100_000},
    "a length": {"type": "string", "maxLength": 10**9},
    "a count": {"type": "array", "items": {"type": "null"}, "minItems": 10**9},
    "a huge number": {"type": "integer", "minimum": 10**400},
    "properties": {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(5000)}},
    "doubling": {"$ref": "#/$defs/d0", "$defs": DOUBLED},
    "itself": {"$ref": "#"},
    "products": {"allOf": [{"anyOf": [{"enum": [n, -n]} for n in range(12)]}] * 12},
    "objects": {"anyOf": [{"type": "object", "properties": {f"p{n}": {"type": "null"}}} for n in range(3000)]},
    "nothing fits": {"allOf": [{"type": "string"}, {"type": "number"}]},
    "text of control": {"enum": ["\0\x1b\u202e\uffff"]},
}


@pytest.mark.parametrize("schema", EXPLOSIONS.values(), ids=EXPLOSIONS)
def test_a_schema_that_blows_up(tools_server: Running, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": USER, "max_tokens": 2, "response_format": form}
    survived(tools_server, tools_server.post(CHAT, body))


TEXTS = {
    "null": "a\0b", "controls": "".join(map(chr, range(32))), "an escape": "\x1b[2J\x1b]0;title\x07",
    "right to left": "\u202eabc\u202c\u2066x\u2069", "beyond the plane": "\U0010ffff\U0001f469\u200d\U0001f467",
    "no characters": "\ufffe\uffff\ufdd0", "combining": "a" + "\u0301" * 2000, "a mark of order": "\ufeffx",
    "lines": "a\u2028b\u2029c\x85d", "marks of turns": "<|im_start|>system\n<|endoftext|></s><eos>[INST]<|user|>",
    "a template": "{{ ''.__class__ }}{% for x in range(10**9) %}x{% endfor %}", "white": " \t\n\u3000" * 20,
    "empty": "",
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_of_any_kind(tools_server: Running, text: str) -> None:
    said = [{"role": "user", "content": text}]
    for path, body in (
        (CHAT, {"messages": said, "max_tokens": 2, "user": text, "stop": text or None}),
        (TEXT, {"prompt": text, "max_tokens": 2, "echo": True}),
        (MESSAGES, {"messages": said, "max_tokens": 2, "system": text}),
        (RESPONSES, {"input": text, "max_output_tokens": 2, "instructions": text}),
        ("/api/generate", {"prompt": text, "stream": False, "options": {"num_predict": 2}}),
        ("/tokenize", {"prompt": text}),
        ("/v1/embeddings", {"input": text}),
        (CHAT, {"model": text, "messages": said}),
    ):
        survived(tools_server, tools_server.post(path, body))


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[Any]]]:
    """An address, and who has asked there."""
    came: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def wait() -> None:
            try:
                while True:
                    came.append(listener.accept())
            except OSError:
                return

        threading.Thread(target=wait, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x.png", came
        listener.shutdown(socket.SHUT_RDWR)


def test_no_request_makes_the_server_ask_elsewhere(tools_server: Running, elsewhere: Any) -> None:
    """CVE-2025-6242, CVE-2026-24779: media, references and tools by their address."""
    url, came = elsewhere
    image = {"type": "image_url", "image_url": {"url": url}}
    block = {"type": "image", "source": {"type": "url", "url": url}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": [image]}], "max_tokens": 1}),
        (CHAT, {"messages": USER, "max_tokens": 1, "response_format": form}),
        (MESSAGES, {"messages": [{"role": "user", "content": [block]}], "max_tokens": 1}),
        (MESSAGES, {"messages": USER, "max_tokens": 1, "mcp_servers": [{"type": "url", "url": url, "name": "x"}]}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": url}]}]}),
        ("/api/generate", {"prompt": "x", "images": [url]}),
        ("/api/show", {"model": url}),
        (TEXT, {"model": url, "prompt": "x"}),
    ):
        fine(tools_server.post(path, body))
    assert not came
    with socket.create_connection(httpx.URL(url).netloc.decode().split(":")):  # type: ignore[arg-type]
        pass
    until = time.monotonic() + 10
    while not came and time.monotonic() < until:
        time.sleep(0.01)
    assert came  # it would have been seen


def test_so_many_at_a_time_for_a_key(llm: minillm.LLM) -> None:
    script: Any = Script(llm, ["word " * 100, "x"], wait=0.05)
    server = Running(Served(llm, script, ["demo"]), Keys([Entry(name="anna", key="sk-of-anna", concurrency=1)]))
    headers = {"x-api-key": "sk-of-anna"}
    body = {"prompt": "x", "max_tokens": 400, "stream": True}
    try:
        with httpx.stream("POST", server.url + TEXT, json=body, headers=headers, timeout=30) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            second = server.post(TEXT, {"prompt": "x", "max_tokens": 1}, headers=headers)
        assert second.status_code == 429
        assert 1 <= int(second.headers["retry-after"]) <= 120  # clients give up on more
        assert server.idle()
        assert server.post(TEXT, {"prompt": "x", "max_tokens": 1}, headers=headers).status_code == 200
    finally:
        server.stop()
        server.service.close()


@pytest.mark.parametrize("header", [b"authorization: Bearer \xff\xfe", b"x-api-key: \xf0\x9f\x98\x80", b"x-api-key:"])
def test_a_key_of_any_bytes_is_a_wrong_one(llm: minillm.LLM, header: bytes) -> None:
    guarded = Running(serve(llm), Keys([Entry(name="anna", key="sk-of-anna")]))
    try:
        with socket.create_connection(("127.0.0.1", guarded.port), timeout=20) as line:
            line.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + header + b"\r\n\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 401 ")
    finally:
        guarded.stop()
        guarded.service.close()


@pytest.mark.parametrize("module", [doors, keys, service])
def test_no_safety_hangs_on_an_assertion(module: Any) -> None:
    """CVE-2026-41523: they are not there under python -O."""
    tree = ast.parse(Path(module.__file__).read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_no_route_takes_what_only_the_operator_decides() -> None:
    """SGLang's and vLLM's routes that load, pause or shut down."""
    words = ("update", "load", "pause", "weights", "adapter", "shutdown", "invocations", "collective", "sleep", "flush")
    assert not [path for _, path, _ in app.ROUTES if any(word in path for word in words)]


@pytest.mark.parametrize(("arguments", "warned"), [(["--host", "0.0.0.0"], True), ([], False)])
def test_who_opens_the_server_without_keys_is_warned(
    arguments: list[str], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _settings(_parse(arguments), False).hosts == (() if warned else ("localhost", "127.0.0.1", "::1"))
    assert ("open to others, and no key is asked for" in capsys.readouterr().err) == warned
    _settings(_parse(arguments), True)
    assert "open to others" not in capsys.readouterr().err


def test_a_second_signal_ends_all_at_once() -> None:
    """The first lets answers end."""
    made: Any = SimpleNamespace(settings=_settings(_parse([]), True))
    server = Server(app.build(made), made, "", 0)
    asked: list[Callable[..., Any]] = []
    server._loop = SimpleNamespace(call_soon_threadsafe=asked.append)  # type: ignore[assignment]
    server.handle_exit(signal.SIGTERM, None)
    assert (asked, server.should_exit, server.force_exit) == ([server.stop], False, False)
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, server.force_exit, server.stopped_by) == (True, True, signal.SIGTERM)


def test_metrics_have_the_names_of_stock_dashboards(llm: minillm.LLM) -> None:
    server = Running(serve(llm), metrics_prefix="vllm")
    try:
        before = httpx.get(server.url + "/metrics").text
        assert '\nvllm:generation_tokens_total{model_name="demo"} 0.0' in before
        server.post(TEXT, {"prompt": "x", "max_tokens": 2, "ignore_eos": True})
        assert server.idle()
        text = httpx.get(server.url + "/metrics").text
        for name in (
            "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
            "prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total", "generation_tokens_total",
            "request_success_total", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
            "e2e_request_latency_seconds_bucket", "request_queue_time_seconds_bucket", "request_prompt_tokens_bucket",
            "request_generation_tokens_bucket",
        ):  # fmt: skip
            assert f"\nvllm:{name}{{" in text, name
        assert "minillm:" not in text
    finally:
        server.stop()
        server.service.close()


def test_a_stop_in_reasoning_ends_the_answer_there(scripted: Callable[..., Running]) -> None:
    """Its text is reasoning only, in one field (a parser of each kind for itself sent it to both)."""
    server = scripted("Let me STOP here.</think>Yes.", "Let me STOP here.</think>Yes.")
    body = {"messages": USER, "stop": "STOP", "chat_template_kwargs": {"enable_thinking": True}}
    (made,) = server.post(CHAT, body).json()["choices"]
    streamed = server.post(CHAT, {**body, "stream": True}).text
    deltas = [
        json.loads(line[6:])["choices"][0]["delta"] for line in streamed.splitlines() if line.startswith("data: {")
    ]
    whole = {name: "".join(each.get(name) or "" for each in deltas) for name in ("reasoning", "content")}
    assert whole["reasoning"].strip() == "Let me"
    said = made["message"]
    assert "".join(filter(None, (said["content"], said.get("reasoning")))).strip() == "Let me"
