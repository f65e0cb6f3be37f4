"""What is said of a tower and a picture before there is one: sizes, bytes and operations."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minillm.engine.batching import room
from minillm.explain.__main__ import main as explain
from minillm.loading import lay_out
from minillm.media import tower
from minillm.media.sources import source
from minillm.plan.__main__ import main as plan
from minillm.plan.budget import Question, budget
from minillm.serve.models.sources import Source
from tests.conftest import shared
from tests.media.recorded import PICTURES, expected, loaded, picture

GEMMA = "real-configs/google__gemma-3-4b-it"


def asked(name: str, **question: Any) -> dict[str, Any]:
    return budget(shared(name), Question(**question))


def test_by_hand() -> None:
    """Gemma 3 4B: SigLIP of 27 layers of 1,152 in 16 heads of 72 over 64 x 64 patches, 4,304 inside; 256 tokens."""
    report, n, size, inner = asked(GEMMA, image="1024x768"), 4096, 1152, 4304
    made = report["picture"]
    assert made["size"] == [1024, 768]
    assert made["brought_to"] == [896, 896]
    assert made["patches"] == [64, 64]
    assert (made["tokens"], made["breaks"]) == (256, 0)
    assert made["pixel_bytes"] == made["patch_bytes"] == 3 * 896 * 896 * 4
    assert made["attention_bytes"] == 4 * n * size * 2
    assert made["scores_bytes"] == 16 * n * n * 4
    assert made["kv_bytes"] == 256 * report["kv_bytes_per_token"]
    layer = 2 * n * (4 * size * size + 2 * size * inner) + 4 * size * n * n
    assert made["flops"] == 27 * layer + 2 * n * 3 * 14 * 14 * size + 2 * 256 * size * 2560
    # With its tower the checkpoint has what its page says: 4,300,079,472 parameters.
    assert report["checkpoint_bytes"] == 2 * 4_300_079_472
    assert report["checkpoint"]["notes"] == []


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_it_becomes(name: str) -> None:
    """Tokens as recorded, and bytes and operations as they are measured."""
    llm, given = loaded(name), picture()
    made = asked(f"media/{name}", image=str(given))["picture"]
    seen = llm.prompts.reader.seen(source("image", given, "one"))
    (token,) = llm.prompts.reader.tokens & {*expected(name, "image")["input_ids"].tolist()}
    assert made["tokens"] == seen.count == int((expected(name, "image")["input_ids"] == token).sum())
    assert made["patches"] == [*seen.grid][::-1] if seen.grid else False
    assert made["patch_bytes"] == seen.values.nbytes
    network = llm.prompts.reader.tower
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # whose products it can see
        network(seen.values, seen.grid)
    assert made["flops"] == counter.get_total_flops()


def test_a_tower_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what fits, in what a server may take, and in what is left for its cache."""
    folder, own = (
        shared("media/gemma3"),
        sum(each.nbytes for each in loaded("gemma3").prompts.reader.tower.parameters()),
    )
    laid = lay_out(folder)
    report = budget(folder, Question())
    assert report["tower"] == {"kind": "image", "parameters": own // 4, "bytes": own}
    assert report["weight_bytes"] == laid.nbytes + own
    assert report["checkpoint"]["left_out"] == {"the part that sees or hears": own}
    assert report["checkpoint"]["difference_bytes"] == 0
    needs = Source(("a",), {"path": folder}, cache_memory=1e6)
    assert needs.model(2**30).needed == laid.nbytes + own + 1_000_000
    assert needs.model(2**30).card.size == laid.nbytes + own
    with pytest.raises(ValueError, match="--model-memory is"):
        needs.model(laid.nbytes + own + 1_000_000 - 1)
    monkeypatch.setattr(room, "room_left", lambda decoder: own + 4000)
    assert room.bytes_for(laid.model, 0.5, tower.nbytes(laid.values, torch.float32)) == 2000


def test_a_tower_is_owed_until_it_is_there() -> None:
    import minillm

    llm = minillm.load(shared("media/gemma3"))
    assert llm.owed == tower.nbytes(llm.values, torch.float32) > 0
    assert llm.prompts.reader
    assert llm.owed == 0
    assert minillm.load(shared("checkpoints/stories260K")).owed == 0


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(["--weights", str(shared("media/mistral3")), "--image", "640x480"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "parameters for images" in out
    found = budget(shared("media/mistral3"), Question(image="640x480"))["picture"]
    assert f"{found['tokens']:,} tokens and {found['breaks']:,} ends of rows" in out
    assert plan(["--weights", str(shared("media/mistral3")), "--image", "640x480", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] == found


EXPLAINED = {
    "qwen2_5_vl": [
        "patches 14 x 14 pixels in 2 frames: 1,176 values -> 32", "layers 0, 2: windows of 4 x 4 patches",
        "layers 1, 3: all of it sees each other", "projector 4 neighbours side by side, 128 -> 128 -> 64",
        "of the decoder's pairs 2 rotate by time, 3 by row, 3 by column",
        "640 x 480 pixels -> 112 x 84 -> 8 x 6 patches [48, 1,176] -> [48, 32] through 4 layers -> 4 x 3 tokens",
    ],
    "qwen3_vl": ["stretched to the grid of a picture", "behind its layers 0, 2: 4 neighbours side by side"],
    "gemma3": ["neighbours averaged, 32 -> 64", "those of a picture see each other both ways"],
    "mistral3": ["at the rates between those of rows", "'[IMG_BREAK]' between rows"],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_tower_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--weights", str(shared(f"media/{name}")), "--image", "640x480"]
    assert explain(given) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert [each for each in EXPLAINED[name] if each not in out] == []
    assert explain([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    count = sum(each.numel() for each in loaded(name).prompts.reader.tower.parameters())
    assert found["tower"]["parameters"] == count
    assert found["tower"]["spec"]["encoder"]["kind"] == "Encoder"
    assert f"{count:,} parameters, read with the first one" in out
    assert found["picture"]["tokens"] == math.prod(loaded(name).prompts.reader.seen(blank(640, 480)).shape)


def blank(width: int, height: int) -> Any:
    return source("image", np.zeros((height, width, 3), np.uint8), "one")


def test_gemma_4_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Its tables are summed, 10,240 rows each, and columns come first."""
    assert explain(["--weights", str(shared("real-configs/google__gemma-4-E2B-it"))]) == 0
    said = capsys.readouterr().out
    assert "10,240 learned rows for columns and 10,240 for rows, of which a patch has one of each" in said
    assert "half of a head's pairs by the column, half by the row, at the same rates" in said
    assert "what products are given and what they give, to stored bounds" in said


def test_text_alone_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(["--weights", str(shared("checkpoints/stories260K")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tower"], found["picture"]) == (None, None)


REFUSED = {
    "no picture": ("media/gemma3", "a.png", "no such file"),
    "no size": ("media/gemma3", "0x9", "there is nothing in it"),
    "a size": ("media/gemma3", "99999x99999", "the limit is 64,000,000"),
    "a shape": ("media/gemma3", "9999x9", "one side over 200 times the other"),
    "a sound": ("media/qwen2_audio", "640x480", "sees no pictures"),
    "a text": ("checkpoints/stories260K", "640x480", "sees no pictures"),
    "no processor": ("real-configs/Qwen__Qwen2-VL-7B-Instruct", "640x480", "no preprocessor_config.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, given, said = REFUSED[name]
    assert plan(["--weights", str(shared(folder)), "--image", given]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1
