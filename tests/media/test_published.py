"""Published configs and indexes: text model and tower together have the parameters that their files state, and every
tensor that sees or hears is claimed by a rule."""

from __future__ import annotations

import json
import math

import pytest
import torch

from minillm.config import read
from minillm.families import resolve
from minillm.families.media import is_part, media
from minillm.model.filling import on_meta
from minillm.model.outline import outline
from minillm.model.tower.tower import Tower
from minillm.weights.rules import plan
from minillm.weights.save import published
from tests.conftest import shared

# Parameters of the whole, as the model pages state them.
WHOLE = {
    "Qwen__Qwen2-VL-2B-Instruct-AWQ": 2_208_985_600,  # before it was quantised
    "Qwen__Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen__Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen__Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen__Qwen3-VL-30B-A3B-Instruct": 31_070_754_032,
    "google__gemma-3-4b-it": 4_300_079_472,
    "google__gemma-3-27b-it": 27_432_406_640,
    "Qwen__Qwen2-Audio-7B-Instruct": 8_397_094_912,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_published_size(name: str) -> None:
    values = read(shared(f"real-configs/{name}"))
    found = media(values)
    assert found is not None
    made, _, config = found
    assert config.unread == []
    tower = on_meta(lambda: Tower(made.encoder), torch.bfloat16)
    text = outline(resolve(values)[0], torch.bfloat16)
    total = text.total({key: each.numel() for key, each in text.model.named_parameters()})
    total += sum(each.numel() for each in tower.parameters())
    # Biases of k, which no file of Whisper's has.
    absent = 32 * 1280 if made.kind == "audio" else 0
    assert total - absent == WHOLE[name]


def test_published_names() -> None:
    """Of the one index at hand, whose total size is that of all that is filled."""
    folder = shared("real-configs/Qwen__Qwen2-Audio-7B-Instruct")
    values, index = read(folder), json.loads((folder / "model.safetensors.index.json").read_text())
    found = media(values)
    assert found is not None
    tower = on_meta(lambda: Tower(found[0].encoder), torch.bfloat16)
    planned = plan([each for each in index["weight_map"] if is_part(each)], found[1], tower.destinations())
    assert planned.unclaimed == []
    assert planned.twice_filled == []
    assert {each.partition(".attention.")[2] for each in planned.unfilled} == {"qkv.bias[k]"}
    text = outline(resolve(values)[0], torch.bfloat16)
    total = text.total({key: each.numel() for key, each in text.model.named_parameters()})
    total += sum(math.prod(to.shape) for to in planned.assignments.values())
    assert 2 * total == index["metadata"]["total_size"]


SEEING = ["Qwen__Qwen3-VL-235B-A22B-Instruct", "Qwen__Qwen3-VL-32B-Instruct", "Qwen__Qwen3.5-0.8B",
          "Qwen__Qwen3.5-35B-A3B", "Qwen__Qwen2-VL-2B-Instruct-AWQ"]  # fmt: skip


@pytest.mark.parametrize("name", [*WHOLE, *SEEING])
def test_no_tensor_that_is_used_is_lost(name: str) -> None:
    """By the names that the family publishes, of both generations: each is known to be of the tower, so it is read and
    kept when a checkpoint is written anew, and the decoder takes none of them for its own."""
    values = read(shared(f"real-configs/{name}"))
    found = media(values)
    assert found is not None
    assert found[2].unread == []
    tower = on_meta(lambda: Tower(found[0].encoder), torch.bfloat16)
    places = {each: to for each, to in tower.destinations().items() if not each.endswith("qkv.bias[k]")}
    places |= {each: to for each, to in tower.destinations().items() if found[0].kind == "image"}
    named = published({key: to for key, to in found[1].items() if not key.startswith("model.")}, places)
    decoder, rules, _ = resolve(values)
    text = outline(decoder, torch.bfloat16)
    for outer in ("", "model."):
        names = [outer + each.removeprefix("model.") for each in named]
        assert [each for each in names if not is_part(each)] == []
        planned = plan(names, found[1], places)
        assert (planned.unclaimed, planned.unfilled, planned.dropped) == ([], [], [])
        assert sorted(plan(names, rules, text.model.destinations()).dropped) == sorted(names)
