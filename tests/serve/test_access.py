"""Who may ask: keys, their limits, hosts and origins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import minillm
from minillm.serve import app, keys
from minillm.serve.doors import OPEN
from minillm.serve.errors import Refusal
from minillm.serve.keys import Entry, Keys
from tests.helpers.server import Running, serve

SECRET, LIMITED = "sk-secret-of-anna", "sk-secret-of-bert"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded(llm: minillm.LLM) -> Iterator[Running]:
    entries = [
        Entry(name="anna", key=SECRET),
        Entry(name="bert", key=LIMITED, requests_per_minute=2, tokens_per_minute=500),
        Entry(name="carl", key="sk-secret-of-carl", requests_per_minute=3),
    ]
    made = Running(serve(llm), Keys(entries, lambda: 0.0))  # time stands still: what is used does not come back
    yield made
    made.stop()
    made.service.close()


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _ in app.ROUTES])
@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"authorization": SECRET}])
def test_every_route_asks_for_a_key(guarded: Running, method: str, path: str, given: dict[str, str]) -> None:
    found = httpx.request(method, guarded.url + path.replace("{name:path}", "demo"), headers=given)
    if path == "/health":
        assert found.status_code == 200
    else:
        assert found.status_code == 401
        assert found.json()["error"]
        assert path not in OPEN


def test_a_host_or_a_path_that_deceives_opens_nothing(guarded: Running) -> None:
    """CVE-2026-48746: a Host header that made another path of the URL."""
    for host in ("localhost/health?", "127.0.0.1:80#/health", "x/health", "[::1"):
        found = httpx.get(guarded.url + "/v1/models", headers={"host": host})
        assert found.status_code in (400, 401), host
    for path in (
        "//health",
        "/health/../v1/models",
        "/v1/models/",
        "/v1/models?/health",
        "/V1/models",
        "/page/../metrics",
    ):
        found = httpx.request("GET", httpx.URL(guarded.url, raw_path=path.encode()))
        assert found.status_code == 401, path


def test_either_header_and_any_client(guarded: Running) -> None:
    for headers in (
        {"authorization": f"Bearer {SECRET}"},
        {"authorization": f"bearer {SECRET}"},
        {"x-api-key": SECRET},
    ):
        assert httpx.get(guarded.url + "/v1/models", headers=headers).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong").models.list()


def test_limits_are_told_and_kept(guarded: Running) -> None:
    headers = {"authorization": f"Bearer {LIMITED}"}
    too_many = guarded.post("/v1/chat/completions", {**CHAT, "max_tokens": 505}, headers=headers)
    assert (too_many.status_code, too_many.headers["x-should-retry"]) == (429, "false")
    for left in (1, 0):
        found = guarded.post("/v1/chat/completions", CHAT, headers=headers)
        assert found.status_code == 200
        assert int(found.headers["x-ratelimit-remaining-requests"]) == left
        assert found.headers["x-ratelimit-reset-requests"] == f"{30 * (2 - left):.3f}s"
        assert 400 < int(found.headers["x-ratelimit-remaining-tokens"]) < 500  # what is reserved is not left
    found = guarded.post("/v1/chat/completions", CHAT, headers=headers)
    assert found.status_code == 429
    assert found.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(found.headers["retry-after"]) <= 30
    assert "bert" in found.json()["error"]["message"]
    other = guarded.post("/v1/chat/completions", CHAT, headers={"x-api-key": SECRET})
    assert other.status_code == 200


def test_small_requests_count_too(guarded: Running) -> None:
    headers = {"authorization": "Bearer sk-secret-of-carl"}
    count = {"messages": [{"role": "user", "content": "Hi"}]}
    asked: list[tuple[str, Any]] = [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [5]})]
    asked += [("/v1/messages/count_tokens", count), ("/tokenize", {"prompt": "x"})]
    found = [guarded.post(path, body, headers=headers).status_code for path, body in asked]
    assert found == [200, 200, 200, 429]
    assert guarded.service.keys.holder("sk-secret-of-carl").running == 0


def test_the_log_has_names_and_no_words(guarded: Running) -> None:
    said = {"messages": [{"role": "user", "content": "a \x1b[31m secret word\n"}], "max_tokens": 2}
    guarded.post("/v1/chat/completions", said, headers={"x-api-key": SECRET, "x-request-id": "my-own.id"})
    guarded.idle()
    text = json.dumps(guarded.log)
    assert guarded.log[-1]["key"] == "anna"
    assert guarded.log[-1]["id"] == "my-own.id"
    assert (guarded.log[-1]["completion"], guarded.log[-1]["status"]) == (2, 200)
    assert "secret" not in text


def test_a_template_without_a_system_says_what_helps(guarded: Running) -> None:
    said = {**CHAT, "messages": [{"role": "system", "content": "Be kind"}, *CHAT["messages"]]}
    found = guarded.post("/v1/chat/completions", said, headers={"x-api-key": SECRET})
    assert found.status_code == 400
    message = found.json()["error"]["message"]
    assert "this model knows the roles user and assistant" in message
    assert "--fold-system" in message


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_and_gives_back() -> None:
    clock = Clock()
    entry = Entry(name="a", key="12345678", tokens_per_minute=600, concurrency=2)
    key = Keys([entry], clock).holder("12345678")
    first = key.admit(500)
    with pytest.raises(Refusal, match="600 tokens a minute") as caught:
        key.admit(400)
    assert caught.value.headers["retry-after"] == "30"  # 300 lack, at 10 a second
    first.end(100)
    first.end(0)  # twice does nothing
    second, third = key.admit(400), key.admit(100)
    with pytest.raises(Refusal, match="2 requests at a time"):
        key.admit(0)
    third.end(250)  # more than was reserved: it is paid for later
    second.end(400)
    assert key.tokens is not None
    assert key.tokens.left == -150
    clock.now = 60.0
    assert key.tokens.fill() == 450
    clock.now = 600.0
    assert key.tokens.fill() == 600


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    digest = keys._digest("another-key").hex()
    path.write_text(f"- name: anna\n  key: {SECRET}\n  concurrency: 1\n- {{name: bert, sha256: {digest}}}\n")
    known = keys.load(path)
    assert (known.holder(SECRET).name, known.holder("another-key").name) == ("anna", "bert")
    for text, word in {
        "- name: a\n": "needs a key", "[]": "no keys", "- {name: a, key: abcdefgh, limit: 3}": "limit", "{": "no YAML",
        "- {name: a, key: 'short'}": "key", f"- {{name: a, key: {SECRET}}}\n- {{name: b, key: {SECRET}}}": "another",
    }.items():  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=word) as caught:
            keys.load(path)
        assert SECRET not in str(caught.value)


def test_all_digests_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2025-59425: no early exit tells how far a guess is right."""
    seen = []
    compare = keys.secrets.compare_digest
    monkeypatch.setattr(keys.secrets, "compare_digest", lambda a, b: seen.append(a) or compare(a, b))
    known = Keys([Entry(name=str(n), key=f"key-number-{n}") for n in range(5)])
    assert known.holder("key-number-0").name == "0"
    assert len(seen) == 5


def test_pages_of_others_may_not_ask(llm: minillm.LLM) -> None:
    """Without keys: neither by a name of theirs for this machine (DNS rebinding) nor across origins."""
    server = Running(serve(llm), hosts=("localhost", "127.0.0.1"), origins=("http://friend.example",))
    try:
        assert httpx.get(server.url + "/v1/models").status_code == 200
        assert httpx.get(server.url + "/v1/models", headers={"host": "evil.example"}).status_code == 403
        here = {"origin": server.url}
        assert httpx.get(server.url + "/v1/models", headers=here).status_code == 200
        other = {"origin": "http://evil.example"}
        assert server.post("/v1/chat/completions", CHAT, headers=other).status_code == 403
        for broken in ("http://[", "null", "file://"):
            assert httpx.get(server.url + "/v1/models", headers={"origin": broken}).status_code == 403, broken
        friend = httpx.get(server.url + "/v1/models", headers={"origin": "http://friend.example"})
        assert friend.headers["access-control-allow-origin"] == "http://friend.example"
        assert "access-control-allow-origin" not in httpx.get(server.url + "/v1/models", headers=here).headers
        asks = {"origin": "http://friend.example", "access-control-request-method": "POST"}
        wanted = "authorization, anthropic-version, x-stainless-os"  # of clients in browsers
        asks["access-control-request-headers"] = wanted
        found = httpx.options(server.url + "/v1/chat/completions", headers=asks)
        assert (found.status_code, found.headers["access-control-allow-headers"]) == (204, wanted)
        assert "retry-after" in found.headers["access-control-expose-headers"]
        asks["access-control-request-headers"] = "x: y"
        assert "access-control-allow-headers" not in httpx.options(server.url + "/v1/models", headers=asks).headers
    finally:
        server.stop()
        server.service.close()
