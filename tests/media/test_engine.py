"""Pictures in the engine: many at once, shared prefixes, guesses, and conversations of several turns."""

from __future__ import annotations

import argparse
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

from minillm.engine.batching.engine import Engine
from minillm.media import flags, pictures, tower
from minillm.media.prompts import Reader
from tests.conftest import shared
from tests.media.recorded import GREEDY, expected, greedy, loaded, messages, picture, run

NAMES = ["qwen2_5_vl", "qwen3_vl", "gemma3", "mistral3"]
NEAR = 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [2048, 11])
@pytest.mark.parametrize("deterministic", [False, True])
def test_rows_of_all_kinds_together(name: str, budget: int, deterministic: bool) -> None:
    """Two pictures and a text in one batch: each gets what was recorded of it alone."""
    llm, cases = loaded(name), ["image", "text", "behind"]
    rows = [greedy(llm, 24, messages=messages(name, case)) for case in cases]
    for case, row, logits in zip(cases, rows, run(llm, rows, budget, deterministic=deterministic), strict=True):
        assert (logits - expected(name, case)["logits"]).abs().max() <= NEAR, case
        assert row.token_ids == expected(name, case)["greedy_ids"].tolist(), case


@pytest.mark.parametrize("name", NAMES)
def test_guesses(name: str) -> None:
    """What followed the same n-gram before, behind a picture too."""
    llm = loaded(name)
    row = greedy(llm, 24, messages=messages(name, "image"))
    run(llm, [row], prompt_lookup=1)
    assert row.token_ids == expected(name, "image")["greedy_ids"].tolist()
    with pytest.raises(ValueError, match="a draft sees no pictures"):
        llm.generate(messages=messages(name, "image"), draft=loaded(name))


def two(name: str, other: bool) -> list[dict]:
    """A conversation of two pictures and two turns; the first picture is one or another of the same size."""
    image = Image.open(picture())
    image = image.transpose(Image.Transpose.ROTATE_180) if other else image
    first = [{"type": "image", "image": image}, {"type": "text", "text": "Once upon a time"}]
    second = [{"type": "text", "text": "Lily saw"}, {"type": "image", "image": str(picture("portrait.jpg"))}]
    said = {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}
    return [{"role": "user", "content": first}, said, {"role": "user", "content": second}]


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_is_shared_with_the_same_picture_only(name: str) -> None:
    """A cache that goes by token ids alone would answer about the picture before."""
    llm, cached = loaded(name), []
    rows = [greedy(llm, 12, messages=two(name, other)) for other in (False, True, False)]
    assert rows[0].prompt == rows[1].prompt
    alone = [greedy(llm, 12, messages=two(name, other)) for other in (False, True)]
    for row in alone:
        run(llm, [row])
    assert alone[0].token_ids != alone[1].token_ids
    engine = Engine(llm.model, 2048, max_rows=4)
    for row in rows:  # one after the other
        request = engine.add(row)
        with torch.inference_mode():
            while not request.finished:
                engine.step()
        cached.append(request.cached)
    assert [row.token_ids for row in rows] == [alone[0].token_ids, alone[1].token_ids, alone[0].token_ids]
    before = min(span.first for span in rows[0].inserted.spans) if rows[0].inserted else 0
    assert cached[0] == 0
    assert cached[1] <= before
    assert cached[2] > before


@pytest.mark.parametrize("name", NAMES)
def test_n_completions_of_a_picture(name: str) -> None:
    """Read once, and each goes on from it; passes that last are recorded, with their rotation."""
    llm, wanted = loaded(name), expected(name, "image")["greedy_ids"].tolist()
    many = llm.generate(messages=messages(name, "image"), n=3, max_new_tokens=24, **GREEDY)
    assert [result.token_ids for result in many] == [wanted] * 3


@pytest.mark.parametrize("name", NAMES)
def test_forms_of_a_picture(name: str) -> None:
    """A path, bytes, a Pillow image, levels, a data: address and the short form."""
    import base64

    import numpy as np

    llm, text = loaded(name), messages(name, "image")[0]["content"][1]
    data, image = picture().read_bytes(), Image.open(picture()).convert("RGB")
    address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts = [
        {"type": "image", "image": str(picture())},
        {"type": "image", "image": picture()},
        {"type": "image", "image": data},
        {"type": "image", "image": image},
        {"type": "image", "image": np.asarray(image)},
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "input_image", "image_url": address},
    ]
    asked = [[{"role": "user", "content": [part, text]}] for part in parts]
    wanted = llm.prompts.conversation(asked[0])
    assert wanted.ids == expected(name, "image")["input_ids"].tolist()
    for each in asked[1:]:
        made = llm.prompts.conversation(each)
        assert made.ids == wanted.ids
        assert made.inserted is not None
        assert wanted.inserted is not None
        assert made.inserted.digest == wanted.inserted.digest
    short = llm.completion(text["text"], images=[picture()])
    assert short.prompt == wanted.ids


def test_a_prompt_with_marks_of_its_own() -> None:
    llm = loaded("qwen2_5_vl")
    row = llm.completion("Lily<|image_pad|>saw", images=[picture()])
    count = row.prompt.count(518)
    assert row.inserted is not None
    assert len(row.inserted.embeddings) == count > 1
    assert row.inserted.shift == max(llm.prompts.reader.seen(sources_of(picture())).shape) - count


def sources_of(path):
    from minillm.media.sources import source

    return source("image", path, "one")


def test_a_smaller_size() -> None:
    """`max_pixels` bounds the area; without it a picture that is larger than usual is made smaller, and it is said."""
    llm = loaded("qwen2_5_vl")
    rows = [llm.completion("Lily", images=[picture()], max_pixels=n) for n in (28 * 28 * 4, 28 * 28 * 8)]
    counts = [row.prompt.count(518) for row in rows]
    assert counts[0] <= 4 < counts[1] <= 8
    with pytest.raises(ValueError, match="max_pixels is 0"):
        llm.completion("Lily", images=[picture()], max_pixels=0)
    with pytest.raises(ValueError, match="one block of a picture has 784"):
        llm.completion("Lily", images=[picture()], max_pixels=700)
    with pytest.raises(ValueError, match="max_pixels goes with pictures"):
        llm.completion("Lily", max_pixels=7000)
    with pytest.raises(ValueError, match="max_pixels goes with pictures"):
        llm.completion(messages=[{"role": "user", "content": "Lily"}], max_pixels=7000)
    with pytest.raises(ValueError, match="max_pixels is of pictures, this is a sound"):
        loaded("qwen2_audio").completion(messages=messages("qwen2_audio", "audio"), max_pixels=7000)


def test_a_limit_waits_for_the_first_picture_of_a_chat() -> None:
    shown = flags.Shown(
        argparse.Namespace(image=None, audio=None, video=None, fps=None, max_frames=None, max_pixels=7000)
    )
    first = shown.turn("Lily")
    assert shown.limit([first]) == {}
    assert shown.takes(f"/image {picture()}\n")
    assert shown.limit([first, shown.turn("saw")]) == {"max_pixels": 7000}


def test_a_picture_for_a_model_of_text() -> None:
    import minillm

    llm = minillm.load(shared("checkpoints/stories260K"))
    with pytest.raises(ValueError, match="reads text alone here"):
        llm.completion("Lily", images=[picture()])


def test_too_many_tokens_for_the_context() -> None:
    llm = loaded("gemma3")
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    with pytest.raises(ValueError, match=r"more than 16 pictures"):
        llm.completion("Lily", images=[buffer.getvalue()] * 17)


def test_no_more_pictures_are_decoded_than_the_context_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, usual, opened = loaded("qwen2_5_vl").prompts.reader, pictures.opened, []
    monkeypatch.setattr(reader, "context", 20)
    monkeypatch.setattr(pictures, "opened", lambda each: opened.append(each) or usual(each))
    with pytest.raises(ValueError, match=r"2 images take 30 tokens, the context has 20"):
        reader.prompt("<|image_pad|>" * 9, [sources_of(picture())] * 9, special=False)
    assert len(opened) == 2


def test_the_tower_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else asks meanwhile waits for it."""
    llm, usual, loads = loaded("qwen2_5_vl"), tower.load, []

    def slow(*given: Any) -> Reader:
        loads.append(time.sleep(0.1))
        return usual(*given)

    monkeypatch.setattr(tower, "load", slow)
    monkeypatch.setattr(llm.prompts, "_reader", None)
    with ThreadPoolExecutor(3) as threads:
        readers = list(threads.map(lambda _: llm.prompts.reader, range(3)))
    assert len(loads) == 1
    assert readers == readers[:1] * 3
