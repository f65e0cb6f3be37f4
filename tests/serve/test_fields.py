"""Fields of requests: what the page says is what the code does."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import httpx
import msgspec
import pytest

from minillm.serve import app, fields
from minillm.serve.apis import anthropic, embeddings, ollama, openai_chat, openai_completions, plain, responses
from minillm.serve.errors import Refusal
from minillm.serve.fields import Body
from minillm.serve.service import LONG
from minillm.serve.settings import MAX_NESTED, MAX_VALUES
from tests.conftest import ROOT
from tests.helpers.server import Running

PAGE = ROOT / "docs" / "serve.md"
BODIES: dict[str, type[Body]] = {
    "/v1/chat/completions": openai_chat.ChatBody,
    "/v1/completions": openai_completions.CompletionBody,
    "/v1/responses": responses.ResponsesBody,
    "/v1/messages": anthropic.MessagesBody,
    "/api/chat": ollama.ChatBody,
    "/api/generate": ollama.GenerateBody,
    "/v1/embeddings": embeddings.EmbeddingsBody,
    "/tokenize": plain.TokenizeBody,
    "/detokenize": plain.DetokenizeBody,
}


def row(path: str, body: type[Body]) -> str:
    used = [field.encode_name for field in msgspec.structs.fields(body)]
    cells = [", ".join(names) or "–" for names in (used, sorted(body.IDLE), sorted(body.REFUSED))]
    return f"| `{path}` | {' | '.join(cells)} |"


@pytest.mark.parametrize("path", BODIES)
def test_the_page_lists_all_fields(path: str) -> None:
    expected = row(path, BODIES[path])
    assert expected in PAGE.read_text(), f"docs/serve.md lacks this line:\n{expected}"


def test_the_document_has_all_routes_and_the_fields_of_each_body(server: Running) -> None:
    found = httpx.get(f"{server.url}/openapi.json").json()
    assert {(method.upper(), path) for path, each in found["paths"].items() for method in each} == {
        (method, path.replace("{name:path}", "{name}")) for method, path, _ in app.ROUTES
    }
    for path, body in app.BODIES.items():
        schema = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        named = found["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert set(named["properties"]) == {field.encode_name for field in msgspec.structs.fields(body)}
        assert named["additionalProperties"] is False
    names = [each["operationId"] for path in found["paths"].values() for each in path.values()]
    assert len(set(names)) == len(names)


def test_no_field_is_in_two_lists() -> None:
    for body in BODIES.values():
        used = {field.encode_name for field in msgspec.structs.fields(body)}
        assert not used & set(body.IDLE)
        assert not used & set(body.REFUSED)
        assert not set(body.IDLE) & set(body.REFUSED)


def test_the_page_lists_all_routes() -> None:
    text = PAGE.read_text()
    for _, path, _ in app.ROUTES:
        assert f"`{path.replace('{name:path}', 'NAME')}`" in text, path


def test_only_the_files_of_the_page_are_served(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>")
    (tmp_path / "chat.js").write_text("1")
    (tmp_path / "secret.key").write_text("x")
    assert {path: kind for path, (_, kind) in app.page_files(tmp_path).items()} == {
        "/": "text/html", "/page/index.html": "text/html", "/page/chat.js": "text/javascript",
    }  # fmt: skip


def test_a_list_of_millions_of_numbers_is_not_decoded() -> None:
    """Seven million of them took 1.7 seconds, in which nobody else was answered."""
    with pytest.raises(Refusal) as refused:
        fields.parsed(b'{"prompt":[' + b",".join([b"1"] * (MAX_VALUES + 2)) + b"]}")
    assert refused.value.status == 413


def test_a_long_body_is_read_beside_the_event_loop(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    read, names = fields.parsed, []
    monkeypatch.setattr(fields, "parsed", lambda data: names.append(threading.current_thread().name) or read(data))
    for count in (10, LONG):
        server.post("/tokenize", {"prompt": "x" * count})
    loop, beside = names
    assert beside.startswith("minillm prompts")
    assert not loop.startswith("minillm prompts")


@pytest.mark.parametrize(
    ("given", "advice"),
    [("temprature", "did you mean temperature?"), ("metdata", "did you mean metadata?"), ("zzz", "leave it out")],
)
def test_a_name_that_is_nearly_right(given: str, advice: str) -> None:
    with pytest.raises(Refusal, match=re.escape(f"'{given}'; {advice}")):
        fields.read({"messages": [], given: 1}, openai_chat.ChatBody)


def test_a_least_length_beyond_the_most(server: Running) -> None:
    for most, status in ((5, 400), (6, 200), (None, 200)):
        found = server.post("/v1/completions", {"prompt": "x", "min_tokens": 6, "max_tokens": most})
        assert found.status_code == status
    beyond = server.post("/v1/completions", {"prompt": "x", "min_tokens": 9, "max_tokens": 8})
    assert "min_tokens is 9, and at most 8" in beyond.json()["error"]["message"]


def test_what_a_greedy_checkpoint_does_not_look_at_is_in_the_log(
    server: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    """And not in a line of its own beside those of JSON."""
    server.log.clear()
    body = {"prompt": "x", "max_tokens": 1, "top_p": 0.5, "seed": 3, "n": 2}
    assert server.post("/v1/completions", body).status_code == 200
    assert server.idle()
    assert server.log[-1]["idle"] == ["top_p", "seed"]
    assert server.post("/v1/completions", {**body, "temperature": 1}).status_code == 200
    assert server.idle()
    assert "idle" not in server.log[-1]
    assert "without effect" not in capfd.readouterr().err


def test_ollama_takes_zero_for_no_limit(server: Running) -> None:
    """As its runner does, whose limit is one where num_predict > 0."""
    counts = []
    for most in (0, -1, 3):
        options = {"num_predict": most, "temperature": 0}
        body = {"model": "demo", "prompt": "Hi", "stream": False, "options": options}
        counts.append(server.post("/api/generate", body).json()["eval_count"])
    assert counts[0] == counts[1] > counts[2] == 3


def test_a_body_of_many_small_lists_is_not_decoded() -> None:
    """12 MB of them took six seconds, in which nobody else was answered."""
    with pytest.raises(Refusal) as refused:
        fields.parsed(b'{"messages":[' + b",".join([b"[]"] * MAX_NESTED) + b"]}")
    assert refused.value.status == 413
