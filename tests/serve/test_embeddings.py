"""Texts as vectors, against the model itself."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
import torch

import minillm
from tests.helpers.server import Running, serve

TEXTS = ["The cat sat by the sea", "A dog", "Once upon a time there was a small house in a wood " * 3]


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_they_are_the_states_behind_the_norm(client: openai.OpenAI, llm: minillm.LLM, pooling: str) -> None:
    """By OpenAI's client, which asks for base64; twice, as the second time prompts are in the cache."""
    for _ in range(2):
        made = client.embeddings.create(model="demo", input=TEXTS, extra_body={"pooling": pooling})
        assert [each.index for each in made.data] == [0, 1, 2]
        for text, found in zip(TEXTS, made.data, strict=True):
            ids = llm.tokenizer.encode(text)  # type: ignore[union-attr]
            with torch.inference_mode():
                h_TE = llm.model.norm(llm.model.hidden(torch.tensor([ids])))[0].float()
            v_E = h_TE.mean(0) if pooling == "mean" else h_TE[-1]
            assert torch.tensor(found.embedding) == pytest.approx(v_E / v_E.norm(), abs=1e-5)  # fp32, other order
    counts = [len(llm.tokenizer.encode(text)) for text in TEXTS]  # type: ignore[union-attr]
    assert made.usage.prompt_tokens == sum(counts)


def test_ids_and_numbers(client: openai.OpenAI, llm: minillm.LLM) -> None:
    ids = llm.tokenizer.encode(TEXTS[0])  # type: ignore[union-attr]
    by_text = client.embeddings.create(model="demo", input=TEXTS[0], encoding_format="float").data[0].embedding
    assert client.embeddings.create(model="demo", input=ids).data[0].embedding == pytest.approx(by_text, abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"input": ""}, {"input": []}, {"input": [10**6]}, {"dimensions": 3}, {"input": "a " * 3000}, {"pooling": "max"}],
)
def test_what_cannot_be(server: Running, change: dict[str, Any]) -> None:
    found = server.post("/v1/embeddings", {"model": "demo", "input": "x", **change})
    assert found.status_code == 400


def test_they_are_requests_as_any_other(server: Running, llm: minillm.LLM) -> None:
    """Counted, logged, and ended by a time limit and by a server that stops."""
    before = httpx.get(f"{server.url}/metrics").text
    found = server.post("/v1/embeddings", {"model": "demo", "input": TEXTS})
    assert found.status_code == 200
    server.idle()
    assert (server.log[-1]["prompt"], server.log[-1]["completion"]) == (found.json()["usage"]["prompt_tokens"], 0)
    name = 'minillm:request_success_total{finished_reason="length",model_name="demo"} '
    texts = (before, httpx.get(f"{server.url}/metrics").text)
    counts = [sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(name)) for text in texts]
    assert counts[1] - counts[0] == len(TEXTS)
    hurried = Running(serve(llm), request_timeout=0.0)
    assert hurried.post("/v1/embeddings", {"input": TEXTS}).status_code == 504
    hurried.service.draining = True
    assert hurried.post("/v1/embeddings", {"input": TEXTS}).status_code == 503
    hurried.stop()
    hurried.service.close()
