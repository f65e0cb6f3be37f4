"""Pictures and sounds of requests: OpenAI's parts and Anthropic's blocks, and what a request may not ask for."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.server import Running, serve
from tests.media.recorded import GREEDY, expected, loaded, messages, picture

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="module")
def sees() -> Iterator[Running]:
    yield from running("qwen2_5_vl")


@pytest.fixture(scope="module")
def hears() -> Iterator[Running]:
    yield from running("qwen2_audio")


def running(name: str) -> Iterator[Running]:
    made = Running(serve(loaded(name)))
    yield made
    made.stop()
    made.service.close()


def asked(*content: Any, **more: Any) -> dict[str, Any]:
    greedy = {"temperature": 0, "repetition_penalty": 1.0, "max_tokens": 8, "ignore_eos": True}
    return {"messages": [{"role": "user", "content": [*content]}], **greedy, **more}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


TEXT = {"type": "text", "text": "Once upon a time there was a little girl named Lily."}


def test_a_picture(sees: Running) -> None:
    """The recorded prompt, and the text that is recorded of it."""
    wanted = expected("qwen2_5_vl", "image")
    reply = sees.post(CHAT, asked(image(f"data:image/png;base64,{encoded(picture())}"), TEXT))
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["prompt_tokens"] == len(wanted["input_ids"])
    alone = loaded("qwen2_5_vl").generate(messages=messages("qwen2_5_vl", "image"), max_new_tokens=8, **GREEDY)
    assert alone.token_ids == wanted["greedy_ids"].tolist()[:8]  # type: ignore[union-attr]
    assert reply.json()["choices"][0]["message"]["content"] == alone.text  # type: ignore[union-attr]
    assert sees.log[-1]["idle"] == ["messages.content.image_url.detail"]


def test_a_block(sees: Running) -> None:
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded(picture())}}
    body = {"messages": [{"role": "user", "content": [block, TEXT]}], "max_tokens": 4}
    reply = sees.post(MESSAGES, body)
    assert reply.status_code == 200, reply.text
    count = len(expected("qwen2_5_vl", "image")["input_ids"])
    usage = reply.json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count
    assert sees.post("/v1/messages/count_tokens", {"messages": body["messages"]}).json() == {"input_tokens": count}


def test_a_sound(hears: Running) -> None:
    path = messages("qwen2_audio", "audio")[0]["content"][0]["path"]
    part = {"type": "input_audio", "input_audio": {"data": encoded(Path(path)), "format": "wav"}}
    reply = hears.post(CHAT, asked(part, TEXT))
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["prompt_tokens"] == len(expected("qwen2_audio", "audio")["input_ids"])
    other = hears.post(CHAT, asked(image(f"data:image/png;base64,{encoded(picture())}"), TEXT))
    assert other.status_code == 400
    assert other.json()["error"]["message"] == "image 1: this model takes text and audios only"


REFUSED = {
    "an address": (image("http://127.0.0.1:1/a.png"), "none is fetched"),
    "a file": (image("file:///etc/passwd"), "none is fetched"),
    "a path": (image("/etc/passwd"), "no file is read for a request"),
    "no base64": (image("data:image/png;base64,@"), "base64 is broken"),
    "no picture": (image("data:image/png;base64,aGk="), "no picture that can be read"),
    "a video": ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,aGk="}}, "not supported"),
    "a number": ({"type": "image_url", "image_url": {"url": 3}}, "expected a text"),
    "another field": ({"type": "image_url", "image_url": {"url": "data:", "x": 1}}, "unknown field"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(sees: Running, name: str) -> None:
    part, said = REFUSED[name]
    reply = sees.post(CHAT, asked(part, TEXT))
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
    assert "passwd" not in reply.json()["error"]["message"]
    assert sees.idle()


def test_a_model_of_text(server: Running) -> None:
    reply = server.post(CHAT, asked(image(f"data:image/png;base64,{encoded(picture())}"), TEXT))
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "image 1: this model takes text only"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    import minillm

    made = Running(serve(minillm.load(dtype="float32")))
    yield made
    made.stop()
    made.service.close()
