"""OpenAI's own client drives the server: chats, completions, models, errors."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest
from openai import OpenAI

import minillm
from tests.helpers.server import Running

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story about a cat"}]


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_chat_is_what_generate_writes(client: OpenAI, llm: minillm.LLM) -> None:
    made = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=30)
    expected = llm.generate(messages=MESSAGES, max_new_tokens=30)
    assert made.choices[0].message.content == expected.text
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(expected.prompt_token_ids), 30)
    assert made.model == "demo"


def test_a_stream_is_the_whole_in_pieces(client: OpenAI, llm: minillm.LLM) -> None:
    options: Any = {"include_usage": True}
    chunks = [
        *client.chat.completions.create(
            model="demo", messages=MESSAGES, max_tokens=20, stream=True, stream_options=options
        )
    ]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == llm.generate(messages=MESSAGES, max_new_tokens=20).text
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20


def test_the_accumulator_takes_the_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=MESSAGES, stop=".") as stream:
        for _ in stream:
            pass
        whole = stream.get_final_completion()
    again = client.chat.completions.create(model="demo", messages=MESSAGES, stop=".")
    assert whole.choices[0].message.content == again.choices[0].message.content


def test_answers_of_one_prompt_differ_and_seeds_repeat_them(client: OpenAI, llm: minillm.LLM) -> None:
    def texts() -> list[str | None]:
        made = client.chat.completions.create(
            model="demo", messages=MESSAGES, n=3, seed=7, temperature=1.2, max_tokens=20
        )
        assert [choice.index for choice in made.choices] == [0, 1, 2]
        return [choice.message.content for choice in made.choices]

    first = texts()
    assert len(set(first)) == 3
    assert texts() == first
    same = {"temperature": 1.2, "max_new_tokens": 20}
    assert first == [llm.generate(messages=MESSAGES, seed=seed, **same).text for seed in (7, 8, 9)]


def test_scores_are_of_the_tokens_that_were_written(client: OpenAI) -> None:
    made = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=15, logprobs=True, top_logprobs=4)
    scores = made.choices[0].logprobs
    assert scores is not None
    assert scores.content is not None
    assert len(scores.content) == 15
    raw = b"".join(bytes(each.bytes or []) for each in scores.content)
    assert raw.decode().strip() == (made.choices[0].message.content or "").strip()
    for each in scores.content:
        assert each.logprob == each.top_logprobs[0].logprob  # greedy: the likeliest
        assert len(each.top_logprobs) == 4
        assert sum(math.exp(top.logprob) for top in each.top_logprobs) <= 1 + 1e-6


def test_scores_come_with_a_stream_too(client: OpenAI) -> None:
    def asked(stream: bool) -> Any:
        return client.chat.completions.create(
            model="demo", messages=MESSAGES, max_tokens=9, logprobs=True, top_logprobs=1, stream=stream
        )

    found = [each for chunk in asked(True) if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content]
    assert [each.token for each in found] == [each.token for each in asked(False).choices[0].logprobs.content]


def test_stop_strings_end_an_answer_and_are_not_shown(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=30).choices[0].message.content
    assert whole is not None
    word = whole.split()[4]
    made = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=30, stop=[word, "zzz"])
    assert made.choices[0].finish_reason == "stop"
    assert made.choices[0].message.content == whole[: whole.index(word)]


def test_a_bias_forbids_a_token(client: OpenAI, server: Running) -> None:
    first = client.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=1, extra_body={"return_token_ids": True}
    )
    token = first.choices[0].model_extra["token_ids"][0]  # type: ignore[index]
    other = client.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        max_tokens=1,
        logit_bias={str(token): -100},
        extra_body={"return_token_ids": True},
    )
    assert other.choices[0].model_extra["token_ids"] != [token]  # type: ignore[index]


def test_a_prompt_that_was_read_before_is_counted_as_cached(client: OpenAI) -> None:
    long: Any = [{"role": "user", "content": "There was a cat and a dog and a bird and a fish " * 4}]
    client.chat.completions.create(model="demo", messages=long, max_tokens=2)
    usage = client.chat.completions.create(model="demo", messages=long, max_tokens=2).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens // 16 * 16


def test_completions_of_texts_and_ids(client: OpenAI, llm: minillm.LLM) -> None:
    made = client.completions.create(model="demo", prompt=["Once upon", "The cat"], max_tokens=8, n=2, temperature=0)
    expected = [llm.generate(prompt, max_new_tokens=8).text for prompt in ("Once upon", "The cat") for _ in range(2)]
    assert [choice.text for choice in made.choices] == expected
    ids = llm.tokenizer.encode("Once upon")  # type: ignore[union-attr]
    assert client.completions.create(model="demo", prompt=ids, max_tokens=8).choices[0].text == expected[0]
    assert client.completions.create(model="demo", prompt=[ids], max_tokens=8).choices[0].text == expected[0]
    chunks = client.completions.create(model="demo", prompt="Once upon", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected[0]


def test_a_prompt_is_scored_as_harnesses_do(client: OpenAI, llm: minillm.LLM) -> None:
    """echo with logprobs: the scores are those of the model itself."""
    import torch

    ids = llm.tokenizer.encode("Once upon a time there was")  # type: ignore[union-attr]
    made = client.completions.create(model="demo", prompt=ids, max_tokens=0, echo=True, logprobs=1)
    scores = made.choices[0].logprobs
    assert scores is not None
    assert scores.token_logprobs is not None
    with torch.inference_mode():
        expected_TV = llm.model(torch.tensor([ids]))[0].float().log_softmax(-1)
    found = [float(expected_TV[at, token]) for at, token in enumerate(ids[1:])]
    assert scores.token_logprobs[0] is None
    assert scores.token_logprobs[1:] == pytest.approx(found, abs=2e-4)  # fp32 sums in another order
    assert made.usage is not None
    assert made.usage.completion_tokens == 0


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo", "alias/of-it"]
    assert client.models.retrieve("alias/of-it").id == "alias/of-it"
    made = client.chat.completions.create(model="alias/of-it", messages=MESSAGES, max_tokens=1)
    assert made.model == "demo"


def test_errors_are_those_that_the_client_knows(client: OpenAI) -> None:
    def refused(kind: type[openai.APIStatusError], **options: Any) -> Any:
        asked = {"model": "demo", "messages": MESSAGES, **options}
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**asked)
        assert set(caught.value.body) >= {"message", "type", "param", "code"}  # type: ignore[call-overload]
        return caught.value

    assert refused(openai.NotFoundError, model="other").code == "model_not_found"
    assert refused(openai.BadRequestError, extra_body={"fancy": 1}).param == "fancy"
    assert refused(openai.BadRequestError, temperature=3).param == "temperature"
    assert refused(openai.BadRequestError, messages=[]).param == "messages"
    error = refused(openai.BadRequestError, max_tokens=5000)
    assert error.code == "context_length_exceeded"
    assert "maximum context length is 512 tokens" in error.message
    assert error.body["n_ctx"] == 512
    long = [{"role": "user", "content": "word " * 3000}]
    assert refused(openai.BadRequestError, messages=long).code == "context_length_exceeded"


def test_nothing_is_taken_without_effect_or_a_word(client: OpenAI, server: Running) -> None:
    client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=1, user="me", store=True)
    assert server.idle()
    assert server.log[-1]["idle"] == ["store", "user"]
