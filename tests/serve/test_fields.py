"""Fields of requests: what the page says is what the code does."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from minillm.serve import app, fields
from minillm.serve.apis import anthropic, embeddings, ollama, openai_chat, openai_completions, plain, responses
from minillm.serve.errors import Refusal
from minillm.serve.fields import Body
from minillm.serve.settings import MAX_NESTED
from tests.conftest import ROOT

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


def test_a_body_of_many_small_lists_is_not_decoded() -> None:
    """12 MB of them took six seconds, in which nobody else was answered."""
    with pytest.raises(Refusal) as refused:
        fields.parsed(b'{"messages":[' + b",".join([b"[]"] * MAX_NESTED) + b"]}")
    assert refused.value.status == 413
