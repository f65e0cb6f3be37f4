"""Pictures and sounds of requests: OpenAI's parts and Anthropic's blocks, and what a request may not ask for."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
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


@pytest.fixture(scope="module")
def wanted(sees: Running) -> tuple[str, int]:
    """What is recorded of the picture and TEXT: eight tokens of text, and the length of the prompt."""
    found = expected("qwen2_5_vl", "image")
    alone = loaded("qwen2_5_vl").generate(messages=messages("qwen2_5_vl", "image"), max_new_tokens=8, **GREEDY)
    assert alone.token_ids == found["greedy_ids"].tolist()[:8]  # type: ignore[union-attr]
    return alone.text, len(found["input_ids"])  # type: ignore[union-attr]


OLLAMA = {"stream": False, "options": {"temperature": 0, "num_predict": 8, "repeat_penalty": 1.0}}


@pytest.mark.parametrize("stream", [False, True])
def test_pictures_of_ollama(sees: Running, wanted: tuple[str, int], stream: bool) -> None:
    """In base64 beside a text, in both of its routes."""
    images, text = [encoded(picture())], TEXT["text"]
    message = {"role": "user", "content": text, "images": images}
    asked = {**OLLAMA, "stream": stream}
    for path, body in (("/api/chat", {"messages": [message]}), ("/api/generate", {"prompt": text, "images": images})):
        reply = sees.post(path, {**body, **asked})
        assert reply.status_code == 200, reply.text
        lines = [msgspec.json.decode(line) for line in reply.text.splitlines()]
        assert (
            "".join(each["message"]["content"] if "chat" in path else each["response"] for each in lines) == wanted[0]
        )
        assert lines[-1]["prompt_eval_count"] == wanted[1]
    assert "vision" in sees.post("/api/show", {}).json()["capabilities"]


def test_a_picture_of_a_response(sees: Running, wanted: tuple[str, int]) -> None:
    part = {"type": "input_image", "image_url": f"data:image/png;base64,{encoded(picture())}", "detail": "auto"}
    said = [{"role": "user", "content": [part, {"type": "input_text", "text": TEXT["text"]}]}]
    reply = sees.post("/v1/responses", {"input": said, "max_output_tokens": 8, "temperature": 0})
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["input_tokens"] == wanted[1]
    assert sees.log[-1]["idle"] == ["input.content.detail"]
    assert reply.json()["output"][0]["content"][0]["text"][:8] == wanted[0][:8]


PART, IMAGES = {"type": "input_image"}, "data:image/png;base64,aGk="
REFUSED_ELSEWHERE = {
    "an address": ("/v1/responses", {**PART, "image_url": "http://127.0.0.1:1/a.png"}, "none is fetched"),
    "a file": ("/v1/responses", {**PART, "image_url": "/etc/passwd"}, "no file is read for a request"),
    "an id": ("/v1/responses", {**PART, "file_id": "file-1"}, "file_id is not supported: no image is fetched"),
    "nothing": ("/v1/responses", PART, "input[0].content[0].image_url is None, expected a text"),
    "the assistant's": ("/v1/responses", {**PART, "image_url": IMAGES, "role": "assistant"}, "this is for text only"),
    "a picture of chats": ("/v1/responses", image(IMAGES), "content of type 'image_url' is not supported"),
    "no base64": ("/api/chat", ["http://127.0.0.1:1/a.png"], "image 1: its base64 is broken"),
    "no text": ("/api/chat", [3], "messages[0].images[0] is 3, expected a text"),
    "no list": ("/api/chat", "aGk=", "messages[0].images is 'aGk=', expected a list of pictures in base64"),
    "the tool's": ("/api/chat", ["aGk=", "tool"], "this is for text only"),
    "beside all": ("/api/chat", None, "images is not supported: they go into the message that shows them"),
    "no template": ("/api/generate", ["aGk="], "images needs a chat template"),
}


@pytest.mark.parametrize("name", REFUSED_ELSEWHERE)
def test_what_is_refused_elsewhere(sees: Running, name: str) -> None:
    path, given, said = REFUSED_ELSEWHERE[name]
    body: dict[str, Any] = {"prompt": "Lily", "images": given, "raw": True}
    if path == "/v1/responses":
        assert isinstance(given, dict)
        part = {key: each for key, each in given.items() if key != "role"}
        body = {"input": [{"role": given.get("role", "user"), "content": [part]}]}
    elif path == "/api/chat":
        tool = isinstance(given, list) and "tool" in given
        message = {"role": "tool" if tool else "user", "content": "Lily", "images": given[:1] if tool else given}
        body = {"messages": [message], **({"images": ["aGk="]} if given is None else {})}
    reply = sees.post(path, body)
    assert reply.status_code == 400
    assert said in reply.text
    assert "passwd" not in reply.text
    assert sees.idle()


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
