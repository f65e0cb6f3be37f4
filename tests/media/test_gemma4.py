"""Gemma 4's pictures: sizes, patches and text as transformers' processor has them, the names of published files, and
mistakes that the parity of random models (`test_parity.py`) notices."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.gemma4 import image_processing_pil_gemma4 as theirs
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

import minillm
from minillm.config import read
from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.families.media import is_part, media
from minillm.media import frames, pictures, settings
from minillm.media.prompts import Reader
from minillm.model.filling import on_meta
from minillm.model.tower.tower import Tower
from minillm.text.chat import ChatTemplate
from minillm.weights.rules import plan
from tests.conftest import shared
from tests.media import models
from tests.media.recorded import run
from tests.media.test_mutations import Change, named

PUBLISHED = ("google__gemma-4-E2B-it", "google__gemma-4-26B-A4B", "nvidia__Gemma-4-26B-A4B-NVFP4")
STATED = {"do_normalize": False, "max_soft_tokens": 70, "patch_size": 16, "pooling_kernel_size": 3, "resample": 3}


def of_published() -> tuple[Any, settings.Settings]:
    found = media(read(shared(f"real-configs/{PUBLISHED[0]}")))
    assert found is not None
    return found[0], settings.of_pictures(STATED, found[0], "processor_config.json")


def test_sizes() -> None:
    draw = random.Random(0)
    for _ in range(500):
        height, width = (round(10 ** draw.uniform(0, 3.7)) for _ in range(2))
        tokens = draw.choice(settings.BUDGETS)
        given = {"patch_size": 16, "max_patches": tokens * 9, "pooling_kernel_size": 3}
        wanted = theirs.get_aspect_ratio_preserving_size(height, width, **given)
        assert pictures.by_budget(height, width, 48, tokens * 48**2) == wanted, (height, width, tokens)


@pytest.mark.parametrize("size", [(131, 94), (40, 700), (1200, 900)])
def test_patches(size: tuple[int, int]) -> None:
    made, seen_as = of_published()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    processor = theirs.Gemma4ImageProcessorPil(max_soft_tokens=70)
    wanted = processor(image, return_tensors="pt")
    values, grid = pictures.patches(pictures.pixels(image, seen_as), 16, 3, 1)
    assert grid[0] * grid[1] == 9 * int(wanted["num_soft_tokens_per_image"][0])
    seen = models.Seen(values, (1, 1), grid, 0, b"")
    given = models.unpacked(made, [seen])
    count = grid[0] * grid[1]
    assert torch.equal(given["image_position_ids"][0], wanted["image_position_ids"][0, :count])
    assert (given["pixel_values"][0] - wanted["pixel_values"][0, :count]).abs().max() <= 1e-6


def test_text() -> None:
    """The published template's mark becomes what transformers' processor puts in its place."""
    folder = shared(f"real-configs/{PUBLISHED[0]}")
    template = ChatTemplate((folder / "chat_template.jinja").read_text(), {"bos_token": "<bos>"})
    text = template.render([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Lily"}]}])
    made = of_published()[0]
    assert text.count(made.placeholder.mark) == 1
    said = json.loads((folder / "tokenizer_config.json").read_text())

    class Of:
        boi_token, eoi_token, image_token = said["boi_token"], said["eoi_token"], said["image_token"]

    process = transformers.models.gemma4.processing_gemma4.Gemma4Processor.replace_image_token
    reader = Reader.__new__(Reader)
    reader.placed_by = {"image": made.placeholder}
    seen = models.Seen(torch.zeros(1, 54, 1), (2, 3), (6, 9), 0, b"")
    assert reader.placed(seen) == process(Of(), {"num_soft_tokens_per_image": [6]}, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names(name: str) -> None:
    """All tensors that transformers' model of a published config has for pictures are claimed and fill all there is; of
    a tower of sound none is, which the text model's rules say."""
    folder = shared(f"real-configs/{name}")
    values = read(folder)
    found = media(values)
    assert found is not None
    made, rules, config = found
    assert config.unread == []
    given = {key: each for key, each in values.items() if key not in ("quantization_config", "model_type")}
    with torch.device("meta"):
        whole = transformers.AutoModelForImageTextToText.from_config(transformers.Gemma4Config(**given))
    tensors = {key: tuple(each.shape) for key, each in whole.state_dict().items() if is_part(key)}
    planned = plan(list(tensors), rules, on_meta(lambda: Tower(made.encoder), torch.bfloat16).destinations())
    assert (planned.unclaimed, planned.unfilled, planned.twice_filled) == ([], [], [])
    assert all(tensors[key] == to.stored_shape for key, to in planned.assignments.items())
    assert all("audio_tower." in key or "embed_audio." in key for key in planned.dropped)
    assert made.joint == made.windowed == ("26B" in name)
    assert made.told_as == (None if "26B" in name else 0)


def test_budgets() -> None:
    made, _ = of_published()
    assert settings.of_pictures({}, made, "a.json").most == 280 * 48**2
    for changes, said in (
        ({"max_soft_tokens": 100}, "max_soft_tokens is 100, expected one of 70"),
        ({"max_soft_tokens": 0}, "max_soft_tokens is 0"),
        ({"do_resize": False}, "do_resize is False"),
    ):
        with pytest.raises(ValueError, match=said):
            settings.of_pictures(changes, made, "a.json")


def test_frames_of_a_video() -> None:
    """Which are seen, their size, and the text around them."""
    made, _ = of_published()
    assert made.video is not None
    clips = settings.of_videos({"do_normalize": True, "image_mean": [0] * 3, "image_std": [1] * 3}, made, "a.json")
    for count, rate in ((32, 24.0), (33, 2.0), (500, 23.976), (5000, 30.0)):
        chosen = frames.sampled(count, rate, clips, made.video)
        metadata = VideoMetadata(total_num_frames=count, fps=rate)
        assert chosen == default_sample_indices_fn(metadata, num_frames=32).tolist()
        metadata.frames_indices = chosen
        assert frames.size_of(32, 720, 1280, clips, made.video) == theirs.get_aspect_ratio_preserving_size(
            720, 1280, patch_size=16, max_patches=70 * 9, pooling_kernel_size=3
        )

        class Of:
            boi_token, eoi_token, video_token = "<|image>", "<image|>", "<|video|>"

        process = transformers.models.gemma4.processing_gemma4.Gemma4Processor.replace_video_token
        reader = Reader.__new__(Reader)
        reader.placed_by = {"video": made.video.placeholder}
        stamps = frames.stamped(chosen, rate, clips.group, "clock")
        seen = models.Seen(torch.zeros(32, 54, 1), (2, 3), (6, 9), 0, b"", "video", (0,) * 32, stamps)
        given = {"num_soft_tokens_per_video": [6], "video_metadata": [metadata]}
        assert reader.placed(seen) == process(Of(), given, 0)  # type: ignore[arg-type]
    assert frames.sampled(7, 2.0, clips, made.video) == [*range(7)]


@torch.no_grad()
def test_a_video(tmp_path: Path) -> None:
    """Of a random model: three frames with text between them, whose tokens see each other within a frame."""
    reference = models.build(tmp_path, "gemma4")
    made, tower = models.ours(tmp_path)
    assert made.video is not None
    levels = torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    values = frames.patches(levels, 4, 2, 1)
    seen = models.Seen(values, (2, 3), (4, 6), 0, b"1", "video", (0,) * 3, ("a", "b", "c"))
    ids = [5, *[token for _ in range(3) for token in (6, *[91] * 6, 7)], 8]
    at = [index for index, token in enumerate(ids) if token == 91]
    row = Completion(ids, Sampling(), 1, inserted=models.reader(made, tower).inserted([seen], at, len(ids)))
    (logits,) = run(minillm.load(tmp_path), [row], 5)
    each = [models.Seen(values[index : index + 1], (2, 3), (4, 6), 0, b"") for index in range(3)]
    given = {f"{key.replace('image_', '')}": value for key, value in models.unpacked(made, each).items()}
    kinds = torch.tensor([[2 * (token == 91) for token in ids]])
    wanted = reference(
        input_ids=torch.tensor([ids]), mm_token_type_ids=kinds, pixel_values_videos=given["pixel_values"],
        video_position_ids=given["position_ids"], num_frames_per_video=torch.tensor([3]),
    ).logits[0]  # fmt: skip
    assert (logits - wanted).abs().max() <= 2e-5


def test_both_spellings(tmp_path: Path) -> None:
    """Of the model without a tower: as it was published, and as transformers calls its modules."""
    models.build(tmp_path, "gemma4_unified")
    path, right = tmp_path / "model.safetensors", models.ours(tmp_path)[1].state_dict()
    tensors = load_file(path)
    assert any("vision_embedder.patch_ln1" in name for name in tensors)
    last = "embed_vision.embedding_projection", "embed_vision.multimodal_embedder.embedding_projection"
    renamed = {name.replace("vision_embedder", "embed_vision").replace(*last): each for name, each in tensors.items()}
    save_file(renamed, path)
    made = models.ours(tmp_path)[1].state_dict()
    assert all(torch.equal(each, right[name]) for name, each in made.items())


def encoder(**changes: Any) -> Change:
    return lambda made: replace(made, encoder=replace(made.encoder, **changes))


def projector(**changes: Any) -> Change:
    return lambda made: replace(
        made, encoder=replace(made.encoder, projector=replace(made.encoder.projector, **changes))
    )


def attention(change: Callable[[Any], Any]) -> Change:
    def changed(made: Any) -> Any:
        layers = tuple(replace(each, attention=change(each.attention)) for each in made.encoder.layers)
        return replace(made, encoder=replace(made.encoder, layers=layers))

    return changed


MISTAKES: list[tuple[str, str, Change]] = [
    ("gemma4", "nothing", lambda made: made),
    ("gemma4", "rows first", encoder(columns="same")),
    ("gemma4", "columns between", encoder(columns="between")),
    ("gemma4", "not scaled", projector(scale=1.0)),
    ("gemma4", "normalised each", projector(norm_of="each")),
    ("gemma4", "not standardised", projector(standardized=False)),
    ("gemma4", "scores scaled", attention(lambda each: replace(each, scores=replace(each.scores, scale=None)))),
    ("gemma4", "v as it is", attention(lambda each: replace(each, kv=replace(each.kv, v_norm=None)))),
    ("gemma4", "pictures read causally", lambda made: replace(made, joint=False)),
    ("gemma4", "seen both ways in all layers", lambda made: replace(made, windowed=False)),
    ("gemma4_unified", "nothing", lambda made: made),
    ("gemma4_unified", "patches as they are", encoder(patch_norm=None)),
    ("gemma4_unified", "vectors as they are", encoder(vector_norm=None)),
    ("gemma4_unified", "seen both ways in all layers", lambda made: replace(made, windowed=False)),
    ("gemma4-small", "nothing", lambda made: made),
    ("gemma4-small", "not clamped", encoder(clipped=False)),
    ("gemma4-small", "layers are told of placeholders", lambda made: replace(made, told_as=None)),
    ("gemma4-small", "seen both ways", lambda made: replace(made, joint=True)),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("name", "mistake", "change"), MISTAKES, ids=named)
def test_mistakes(name: str, mistake: str, change: Change, tmp_path: Path) -> None:
    reference = models.build(tmp_path, name, models.SEEDS.get(name, 0))
    made, tower = models.ours(tmp_path)
    drawn, found = models.seen(made, models.SIZES)
    changed = change(made)
    other = Tower(changed.encoder)
    assert not other.load_state_dict(tower.state_dict(), strict=False).missing_keys
    ids = [5, 6, *[models.TOKEN] * found[0].count, 7, *[models.TOKEN] * found[1].count, 8]
    at = [index for index, token in enumerate(ids) if token == models.TOKEN]
    row = Completion(ids, Sampling(), 1, inserted=models.reader(changed, other).inserted(found, at, len(ids)))
    (logits,) = run(minillm.load(tmp_path), [row])
    kinds = torch.tensor([[int(token == models.TOKEN) for token in ids]])
    given = models.inputs(name, made, drawn, found) | models.masks(reference, name, kinds)
    wanted = reference(input_ids=torch.tensor([ids]), mm_token_type_ids=kinds, **given).logits[0]
    assert ((logits - wanted).abs().max() > 2e-4) == (mistake != "nothing")
