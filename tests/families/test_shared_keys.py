"""Layers that read the keys and values of others: what a config may say of them, what files hold of them all the same,
and what a cache does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm.config import read
from minillm.families import resolve
from minillm.model.cache import Cache, NoCache
from minillm.model.costs import cached_values
from minillm.model.decoder import skeleton
from minillm.report.examine import explain
from tests.conftest import shared
from tests.helpers import tiny
from tests.helpers.gemma_rows import FULL, GEMMA4, SLIDING, STREAMS

BASE = {**tiny.BASE, **GEMMA4, "model_type": "gemma4_text"}
LISTED = {"layer_types": [SLIDING, SLIDING, FULL, SLIDING], "num_hidden_layers": 4}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "all layers": ({"num_kv_shared_layers": 4}, "num_kv_shared_layers is 4, expected 0 to 3"),
    "no number": ({"num_kv_shared_layers": None}, "num_kv_shared_layers is None"),
    "no layer to read": ({"num_kv_shared_layers": 3}, "leaves a kind of layer without keys and values"),
    "rows that lack": (
        {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96},
        "vocab_size_per_layer_input 96 is below vocab_size",
    ),
    "a layer of its own": ({"per_layer_config": {"1": {"head_dim": 8}}}, "per_layer_config is"),
    "two kinds": ({"per_layer_config": {"1": {"head_dim": 8}, "3": {"head_dim": 4}}}, "per_layer_config is"),
    "another key": ({"per_layer_config": {key: {"window": 8} for key in "13"}}, "per_layer_config is"),
    "a width that is none": ({"per_layer_config": {key: {"head_dim": -8} for key in "13"}}, "head_dim is -8"),
    "heads that do not divide": (
        {"attention_k_eq_v": True, "num_global_key_value_heads": 4},
        "6 attention heads are no multiple of 4 kv heads",
    ),
    "looking ahead": ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is on"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    changes, reason = REFUSED[case]
    resolve(BASE)
    with pytest.raises(ValueError, match=reason):
        resolve({**BASE, **changes})


REFUSED_STREAMS: dict[str, tuple[dict[str, Any], str]] = {
    "work on another stream": ({"altup_active_idx": 1}, "altup_active_idx is 1; this family's code knows 0 only"),
    "without a factor": ({"altup_correct_scale": False}, "altup_correct_scale is False"),
    "too few widths": ({"intermediate_size": [40] * 3}, "intermediate_size is .* one for each of 4 layers"),
    "a width that is none": ({"intermediate_size": [40, 0, 40, 40]}, "intermediate_size is 0"),
    "too many shares": ({"activation_sparsity_pattern": [0.5] * 5}, "one for each of 4 layers"),
    "one share": ({"activation_sparsity_pattern": 0.5}, "activation_sparsity_pattern is 0.5, expected a list"),
    "nothing left": ({"activation_sparsity_pattern": [0.5, 1.0, 0, 0]}, "activation_sparsity_pattern is 1.0"),
    "no rank": ({"laurel_rank": 0}, "laurel_rank is 0"),
    "no window": ({"sliding_window": None}, "sliding_window is None"),
}


@pytest.mark.parametrize("case", REFUSED_STREAMS)
def test_streams_that_cannot_be_are_refused(case: str) -> None:
    changes, reason = REFUSED_STREAMS[case]
    values = {**tiny.BASE, **STREAMS, "model_type": "gemma3n_text"}
    resolve(values)
    with pytest.raises(ValueError, match=reason):
        resolve({**values, **changes})


@pytest.mark.parametrize(
    ("changes", "stored"),
    [({}, 6.87e9), ({"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10}, 4.46e9)],
    ids=["E4B", "E2B"],
)
def test_published_sizes_of_streams(changes: dict[str, Any], stored: float) -> None:
    """As llama.cpp names the two, whose files have keys and values of every layer."""
    spec, _, config = resolve({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text", **changes}})
    count = sum(each.numel() for each in skeleton(spec, torch.bfloat16).parameters())
    unused = sum(2 * 2 * 256 * 2048 + 256 for each in spec.attentions if each.kv.layer is not None)
    assert round((count + unused) / 1e9, 2) == stored / 1e9
    assert config.unread == []


def test_streams_inside_what_reads_images(tmp_path: Path) -> None:
    """The text model's values in a section, its tensors behind a prefix, towers beside it."""
    tiny.save(tmp_path, *tiny.ROWS["gemma3n"])
    tokens, plain = tiny.tokens(97, 1, 20), minillm.load(tmp_path)
    expected = plain.model(tokens)
    path, text = tmp_path / "model.safetensors", read(tmp_path)
    tensors = {name.replace("model.", "model.language_model."): each for name, each in load_file(path).items()}
    tensors |= {
        f"model.{tower}.weight": torch.zeros(2) for tower in ("vision_tower.x", "audio_tower.y", "embed_vision")
    }
    save_file(tensors, path, {"format": "pt"})
    outer = {"model_type": "gemma3n", "text_config": text, "audio_config": {}, "audio_soft_tokens_per_image": 188}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    llm = minillm.load(tmp_path)
    assert llm.spec == plain.spec
    assert torch.equal(llm.model(tokens), expected)
    assert explain(tmp_path)["unknown_config_keys"] == explain(tmp_path)["unclaimed_tensors"] == []


def test_two_spellings_of_the_wide_heads() -> None:
    """Published files have keys of their own, transformers 5 writes what they mean for each layer."""
    published = {**BASE, "global_head_dim": 12, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
    written = {key: value for key, value in published.items() if "global" not in key}
    written["per_layer_config"] = {key: {"head_dim": 12, "num_key_value_heads": 1} for key in "13"}
    assert resolve(written)[0] == resolve(published)[0]


def test_the_last_layer_has_no_window() -> None:
    """Whatever a config says, as in transformers."""
    assert [each.window for each in resolve({**BASE, **LISTED})[0].attentions] == [6, 6, None, None]


def test_each_reads_the_last_of_its_kind() -> None:
    kinds = [SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, FULL]
    values = {**BASE, "num_hidden_layers": 7, "layer_types": kinds, "num_kv_shared_layers": 3}
    assert [each.kv.layer for each in resolve(values)[0].attentions] == [None] * 4 + [1, 3, 1]


def test_tensors_that_nobody_uses_are_left_out(tmp_path: Path) -> None:
    """Keys and values of layers that read others', and what images and sound go through."""
    tiny.save(tmp_path, *tiny.ROWS["gemma4"])
    tokens = tiny.tokens(97, 1, 20)
    expected = minillm.load(tmp_path).model(tokens)
    path = tmp_path / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(path)
    for part in ("k_proj.weight", "v_proj.weight", "k_norm.weight"):
        tensors[f"model.layers.3.self_attn.{part}"] = tensors[f"model.layers.1.self_attn.{part}"].clone()
    tensors |= {f"model.{tower}.weight": torch.zeros(2) for tower in ("vision_tower.x", "audio_tower.y", "embed_audio")}
    save_file(tensors, path, {"format": "pt"})
    assert torch.equal(minillm.load(tmp_path).model(tokens), expected)


def test_a_layer_that_reads_another_keeps_nothing() -> None:
    """Of E2B 15 layers of 35 have a cache, and a token takes the values that they keep."""
    folder = shared("real-configs/google__gemma-4-E2B-it")
    spec = resolve(read(folder))[0]
    cache = Cache(spec, 1, 1024, torch.bfloat16, "meta")
    held = [layer for layer in cache.layers if not isinstance(layer, NoCache)]
    assert [isinstance(layer, NoCache) for layer in cache.layers] == [False] * 15 + [True] * 20
    assert sum(layer.k.nbytes + layer.v.nbytes for layer in held) == 12 * 2 * 512 * 256 * 2 + 3 * 2 * 1024 * 512 * 2
    assert cached_values(spec) == 12 * 2 * 256 + 3 * 2 * 512
    report = explain(folder)
    assert report["cached_values_per_token"] == cached_values(spec)
