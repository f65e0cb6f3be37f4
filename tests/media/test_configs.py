"""Sections and processor files that cannot be: one line each, which names the key."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minillm.config import read
from minillm.media import settings, tower
from minillm.spec.media import Spectrum
from tests.media import models

# model_type -> keys of the config ("section.key") with values that cannot be, and what is said
CONFIGS: list[tuple[str, str, Any, str]] = [
    ("qwen2_5_vl", "vision_config", [1], "vision_config is"),
    ("qwen2_5_vl", "vision_config.num_heads", 3, "heads need a multiple of 4"),
    ("qwen2_5_vl", "vision_config.hidden_size", "x", "hidden_size is 'x'"),
    ("qwen2_5_vl", "vision_config.out_hidden_size", 44, "the tower gives 44 values, the text model has 48"),
    ("qwen2_5_vl", "vision_config.window_size", 3, "window_size is less than 8 pixels"),
    ("qwen2_5_vl", "vision_config.fullatt_block_indexes", [9], "expected layers from 0 to 2"),
    ("qwen2_5_vl", "vision_config.fullatt_block_indexes", 1, "fullatt_block_indexes is 1"),
    ("qwen2_5_vl", "vision_config.hidden_act", "tanh", "hidden_act is 'tanh'"),
    ("qwen2_5_vl", "text_config.rope_parameters", {**models.CHUNKED, "mrope_section": [1, 2]}, "mrope_section is"),
    ("qwen2_5_vl", "text_config.rope_parameters", {**models.CHUNKED, "mrope_section": [9, 9, 9]}, "of sum 6"),
    ("qwen3_vl", "vision_config.num_position_embeddings", 24, "which is no square"),
    ("qwen3_vl", "vision_config.deepstack_visual_indexes", [0, 0], "a layer twice"),
    ("gemma3", "mm_tokens_per_image", 8, "is no square that 6 by 6 patches make"),
    ("gemma3", "vision_config.num_attention_heads", 3, "do not divide"),
    ("mistral3", "projector_hidden_act", "tanh", "projector_hidden_act is 'tanh'"),
    ("mistral3", "multimodal_projector_bias", 1, "expected true or false"),
    ("mistral3", "vision_feature_layer", -2, "vision_feature_layer is -2"),
    ("mistral3", "vision_config.head_dim", 8, "head_dim is 8"),
]


@pytest.mark.parametrize(("name", "key", "value", "said"), CONFIGS, ids=lambda each: str(each)[:40])
def test_a_config(name: str, key: str, value: Any, said: str, tmp_path: Path) -> None:
    models.build(tmp_path, name)
    path = tmp_path / "config.json"
    made = json.loads(path.read_text())
    section, _, inner = key.rpartition(".")
    (made[section] if section else made)[inner] = value
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match=r"config\.json") as refused:
        tower.weights(tmp_path, read(tmp_path), torch.float32, torch.device("cpu"))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


PROCESSORS: list[tuple[dict[str, Any], str]] = [
    ({"image_mean": [1, 2]}, "image_mean is"),
    ({"image_std": [0, 1, 1]}, "image_std is 0"),
    ({"min_pixels": -1}, "min_pixels is -1"),
    ({"max_pixels": "x"}, "max_pixels is"),
    ({"min_pixels": 0}, "min_pixels is 0"),
    ({"min_pixels": 0, "max_pixels": 0}, "pixels is 0"),
    ({"min_pixels": 10_000, "max_pixels": 100}, "is above max_pixels"),
    ({"resample": 9}, "resample is 9"),
    ({"do_resize": False}, "do_resize is False"),
    ({"rescale_factor": 0}, "rescale_factor is 0"),
]
COLOURS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(("changes", "said"), PROCESSORS, ids=lambda each: str(each)[:40])
def test_a_processor(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    models.build(tmp_path, "qwen2_vl")
    media, _ = models.ours(tmp_path)
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json or"):
        settings.read(tmp_path, media)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**COLOURS, **changes}))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: ") as refused:
        settings.read(tmp_path, media)
    assert said in str(refused.value)


def test_a_processor_of_edges(tmp_path: Path) -> None:
    models.build(tmp_path, "mistral3")
    media, _ = models.ours(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**COLOURS, "size": {"longest_edge": 0}}))
    with pytest.raises(ValueError, match=r"size\.longest_edge is 0, expected a whole number from 1"):
        settings.read(tmp_path, media)


@pytest.mark.parametrize("key", ["hop_length", "n_fft", "sampling_rate", "chunk_length"])
def test_a_processor_of_sounds(key: str, tmp_path: Path) -> None:
    hears: Any = SimpleNamespace(encoder=SimpleNamespace(embed=Spectrum(128, 1500)))
    assert settings.of_sounds({}, hears, "a.json").seconds == 30
    with pytest.raises(ValueError, match=f"{key} is 0"):
        settings.of_sounds({key: 0}, hears, "a.json")


def test_what_contradicts_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.build(tmp_path, "qwen2_vl")
    media, _ = models.ours(tmp_path)
    capsys.readouterr()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**COLOURS, "patch_size": 14, "merge_size": 2}))
    assert settings.read(tmp_path, media).block == 8  # type: ignore[union-attr]
    assert capsys.readouterr().err.count("patch_size is 14, config.json says 4: the latter counts") == 1
