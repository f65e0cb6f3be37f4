"""The clients of Anthropic, of Ollama and of OpenAI's responses, without tools: texts, streams, ends, errors."""

from __future__ import annotations

from typing import Any

import anthropic
import ollama
import openai
import pytest

import minillm
from tests.helpers.server import Running

STORY = "Tell me a story about a cat"
MESSAGES: list[Any] = [{"role": "user", "content": STORY}]


@pytest.fixture(scope="module")
def claude(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def llama(server: Running) -> ollama.Client:
    return ollama.Client(host=server.url)


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def text(llm: minillm.LLM) -> str:
    return llm.generate(messages=MESSAGES, max_new_tokens=20).text


def test_messages(claude: anthropic.Anthropic, text: str) -> None:
    made: Any = claude.messages.create(model="demo", max_tokens=20, messages=MESSAGES)
    assert [block.text for block in made.content] == [text]
    assert (made.stop_reason, made.usage.output_tokens) == ("max_tokens", 20)
    with claude.messages.stream(model="demo", max_tokens=20, messages=MESSAGES) as stream:
        kinds = [event.type for event in stream]
        streamed: Any = stream.get_final_message()
    assert streamed.content[0].text == text
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    used = streamed.usage
    assert (
        used.input_tokens + used.cache_read_input_tokens == made.usage.input_tokens + made.usage.cache_read_input_tokens
    )


def test_messages_end_for_a_reason(claude: anthropic.Anthropic, text: str) -> None:
    word = text.split()[3]
    made: Any = claude.messages.create(model="demo", max_tokens=20, messages=MESSAGES, stop_sequences=[word])
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", word)
    assert made.content[0].text == text[: text.index(word)]
    made = claude.messages.create(model="demo", max_tokens=1000, messages=MESSAGES)
    assert made.stop_reason in ("end_turn", "model_context_window_exceeded")


def test_a_nonce_in_the_system_is_left_out(claude: anthropic.Anthropic) -> None:
    """Claude Code's billing block, which changes with every request."""

    def count(*blocks: str) -> int:
        system: Any = [{"type": "text", "text": block, "cache_control": {"type": "ephemeral"}} for block in blocks]
        return claude.messages.count_tokens(model="demo", messages=MESSAGES, system=system).input_tokens

    assert count("x-anthropic-billing-header: cch=1234567890", "Be kind.") == count("Be kind.") > count()


def test_errors_of_messages(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="other", max_tokens=9, messages=MESSAGES)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    image: Any = [
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1"}}]}
    ]
    with pytest.raises(anthropic.BadRequestError, match="image"):
        claude.messages.create(model="demo", max_tokens=9, messages=image)


def test_ollama(llama: ollama.Client, text: str) -> None:
    options: Any = {"num_predict": 20}
    whole = llama.chat("demo", messages=MESSAGES, options=options)
    assert (whole.message.content, whole.done_reason, whole.eval_count) == (text, "length", 20)
    parts = [*llama.chat("demo:latest", messages=MESSAGES, options=options, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == text
    assert [part.done for part in parts[-2:]] == [False, True]
    assert llama.generate("demo", prompt=STORY, options=options).response == text
    assert [*llama.generate("demo", prompt=STORY, options=options, stream=True)][-1].eval_count == 20


def test_what_ollama_has(llama: ollama.Client, server: Running) -> None:
    assert [model.model for model in llama.list().models] == ["demo", "alias/of-it"]
    found = llama.show("demo")
    assert found.capabilities == ["completion"]
    assert (found.modelinfo or {})["llama.context_length"] == 512
    assert len(llama.ps().models) == 2
    assert llama.chat("demo", messages=[]).done_reason == "load"
    with pytest.raises(ollama.ResponseError) as missing:
        llama.chat("other", messages=MESSAGES)
    assert (missing.value.status_code, "does not exist" in missing.value.error) == (404, True)
    assert "num_gpus" in server.post("/api/chat", {"messages": MESSAGES, "options": {"num_gpus": 1}}).json()["error"]


def test_responses(client: openai.OpenAI, text: str) -> None:
    made = client.responses.create(model="demo", input=STORY, max_output_tokens=20)
    assert made.output_text == text
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")  # type: ignore[union-attr]
    assert made.usage is not None
    assert made.usage.output_tokens == 20
    with client.responses.stream(model="demo", input=MESSAGES, temperature=0) as stream:
        events = [*stream]
        final = stream.get_final_response()
    assert final.output_text.startswith(text)
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip


def test_responses_are_stateless(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id is not supported"):
        client.responses.create(model="demo", input=STORY, previous_response_id="resp_1")


def test_a_developer_may_speak_anywhere(client: openai.OpenAI, server: Running) -> None:
    """As Codex has it; and its probe, an input of nothing."""
    items: Any = [*MESSAGES, {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]}]
    assert client.responses.create(model="demo", input=items, max_output_tokens=4, instructions="Be brief.").output
    assert client.responses.create(model="demo", input="", max_output_tokens=1).output
