"""Pan and scan: long pictures that are also seen in parts, as transformers does with Gemma 3's."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

import minillm
from minillm.llm import LLM
from minillm.media import pictures, sources
from minillm.media.settings import Crops
from tests.conftest import shared
from tests.media.recorded import greedy, loaded, run

STATED = {"pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 3, "pan_and_scan_min_ratio_to_activate": 1.5}
CROPS = Crops(*STATED.values())  # type: ignore[arg-type]


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_parts() -> None:
    draw = random.Random(0)
    for _ in range(200):
        image = picture(*(draw.choice([9, 16, 31, 40, 77, 120, 200]) for _ in range(2)))
        wanted = Gemma3ImageProcessorPil().pan_and_scan(np.asarray(image).transpose(2, 0, 1), **STATED)
        made = [np.asarray(each).transpose(2, 0, 1) for each in pictures.cropped(image, CROPS)]
        assert len(made) == len(wanted)
        assert all(np.array_equal(one, other) for one, other in zip(made, wanted, strict=True))


@pytest.fixture
def cropping(tmp_path: Path) -> LLM:
    folder = tmp_path / "gemma3"
    shutil.copytree(shared("media/gemma3"), folder, ignore=shutil.ignore_patterns("expected"))
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**stated, **STATED, "do_pan_and_scan": True}))
    return minillm.load(folder)


def messages(image: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Lily"}]}]


@torch.no_grad()
@pytest.mark.parametrize("size", [(100, 40), (30, 90), (40, 40)])
def test_a_prompt(size: tuple[int, int], cropping: LLM) -> None:
    """Pixels, ids and logits, whole and in pieces: each part's tokens see each other, not those of other parts."""
    folder, image = cropping.prompts.folder, picture(*size)
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    processor = Gemma3ImageProcessorPil(**{key: each for key, each in stated.items() if "processor" not in key})
    inputs = processor(image, return_tensors="pt")
    crops = int(inputs["num_crops"][0])
    assert crops == {(100, 40): 3, (30, 90): 3, (40, 40): 0}[size]
    _, found = sources.taken(messages(image))
    seen = cropping.prompts.reader.seen(found[0])
    assert len(seen.values) == crops + 1
    row = greedy(cropping, 6, messages=messages(image))
    assert row.inserted is not None
    assert len({span.digest for span in row.inserted.spans}) == crops + 1  # blocks of the cache go by them
    theirs = transformers.models.gemma3.processing_gemma3.Gemma3Processor.replace_image_token
    made = cropping.prompts.reader.media.placeholder

    class Of:
        full_image_sequence = made.before + made.token * seen.shape[0] * seen.shape[1] + made.after

    assert cropping.prompts.reader.placed(seen) == theirs(Of(), {"num_crops": [crops]}, 0)  # type: ignore[arg-type]
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    kinds = torch.tensor([[int(token in cropping.prompts.reader.tokens) for token in row.prompt]])
    given = {"pixel_values": inputs["pixel_values"], "token_type_ids": kinds}
    wanted = model(input_ids=torch.tensor([row.prompt]), **given).logits[0]
    (logits,) = run(cropping, [row], 7)
    assert (logits - wanted).abs().max() <= 1e-4


def test_off_unless_a_file_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    reader = loaded("gemma3").prompts.reader
    assert len(reader.seen(sources.Source("image", picture(400, 100), "one")).values) == 1
