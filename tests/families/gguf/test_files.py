"""GGUF files of every architecture: a model with random parameters, written under llama.cpp's names by `converter.py`,
is the same model when it is read from the file: its description, and every parameter.

The names and the changes to values are those of llama.cpp's converter, which `weights/gguf/test_fixtures.py` has real
files of for some architectures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minillm import config, families, hub
from minillm.families.gguf import architectures
from minillm.loading import load
from tests.families.gguf.converter import SHIFTED, converted, joined, metadata, written
from tests.families.gguf.variants import VARIANTS
from tests.helpers import tiny


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_model_from_a_file(variant: str, tmp_path: Path) -> None:
    architecture, family, changes = VARIANTS[variant]
    (tmp_path / "folder").mkdir()
    tiny.save(tmp_path / "folder", family, changes)
    model = converted(tmp_path / "folder", architecture, tmp_path / "model.gguf")
    other = load(tmp_path / "model.gguf", "float32", "cpu", "reference").model
    assert other.spec == model.spec
    rounded = architecture in SHIFTED
    theirs = other.state_dict()
    for name, values in model.state_dict().items():
        if (
            rounded and name.endswith("norm.weight") and "attention.norm" not in name
        ):  # 1 is added to them and taken away
            assert (values - theirs[name]).abs().max() <= 2**-23
        elif name.endswith("decay"):  # the logarithm of an exponential
            assert (values - theirs[name]).abs().max() <= 2**-22 * max(1.0, float(values.abs().max()))
        else:
            assert torch.equal(values, theirs[name]), name


def test_every_architecture_is_here() -> None:
    assert {each[0] for each in VARIANTS.values()} == set(architectures.ARCHITECTURES)


def test_factors_of_frequencies(tmp_path: Path) -> None:
    """A tensor of them divides what the base gives, at every length: Llama 3's scaling, as a converter computes it."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32, "rope_theta": 500.0}  # fmt: skip
    tiny.save(tmp_path / "folder", "llama", {"rope_parameters": scaling, "head_dim": 16})
    model = load(tmp_path / "folder", "float32", "cpu", "reference").model
    wave = 2 * np.pi * 500.0 ** (np.arange(0, 16, 2) / 16)
    smooth = np.clip((32 / wave - 1.0) / 3.0, 0, 1)
    factors = 1 / ((1 - smooth) / 8.0 + smooth)
    values = json.loads((tmp_path / "folder/config.json").read_text())
    named = {**joined(model, "llama"), "rope_freqs.weight": torch.tensor(factors)}
    written(tmp_path / "model.gguf", metadata("llama", values), named)
    other = load(tmp_path / "model.gguf", "float32", "cpu", "reference").model
    tokens = tiny.tokens(97, 1, 100)
    with torch.no_grad():
        exact, found = model(tokens), other(tokens)
    assert (exact - found).abs().max() <= 2e-5 * exact.abs().max()


ODD: list[Any] = ["text", ["a", "b"], [1, 2], [], 0, -1, 2**31, float("nan"), float("inf"), 1e30, True]


@pytest.mark.parametrize("variant", ["llama linear", "mixtral", "gemma3", "phi3 long", "gpt-oss", "deepseek2 (v3)"])
def test_odd_values(variant: str, tmp_path: Path) -> None:
    """Whatever stands for a key: a config that its family reads, or one line."""
    architecture, family, changes = VARIANTS[variant]
    defaults = families.FAMILIES[family].DEFAULTS
    pairs = metadata(architecture, {**defaults, **tiny.BASE, **changes, "moe_intermediate_size": 8})
    named = {"token_embd.weight": torch.zeros(97, 48), "blk.1.exp_probs_b.bias": torch.zeros(8)}
    named |= {f"rope_factors_{kind}.weight": torch.ones(4) for kind in ("short", "long") if variant == "phi3 long"}
    written(tmp_path / "model.gguf", pairs, named)
    families.resolve(config.read(hub.resolve(tmp_path / "model.gguf")))
    for key in pairs:
        for odd in ODD:
            written(tmp_path / "model.gguf", {**pairs, key: odd}, named)
            try:
                families.resolve(config.read(hub.resolve(tmp_path / "model.gguf")))
            except ValueError as error:
                refusal = str(error)
                assert "\n" not in refusal


def test_what_is_refused_or_told(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(saved, "float32", "cpu", "reference").model
    values = json.loads((saved / "config.json").read_text())
    pairs, named, path = metadata("llama", values), joined(model, "llama"), tmp_path / "model.gguf"

    def refused(*words: str, drop: str = "", **changes: Any) -> None:
        given = {**pairs, **{f"llama.{key}": value for key, value in changes.items()}}
        written(path, {key: value for key, value in given.items() if key != f"llama.{drop}"}, named)
        with pytest.raises(ValueError, match=r"model\.gguf") as caught:
            load(path)
        assert all(word in str(caught.value) for word in words), caught.value

    refused("embedding_length is missing", drop="embedding_length")
    refused("differs from layer to layer", **{"attention.head_count_kv": [2, 1, 2]})
    refused("block_count is 'three'", block_count="three")
    refused("block_count is a list", block_count=["a", "b"])
    refused("'xpos'", **{"rope.scaling.type": "xpos"})
    refused("tensors of another shape", feed_forward_length=88)
    pairs["general.architecture"] = "mamba"
    refused("'mamba'", "qwen3moe")
    pairs["general.architecture"] = "llama"
    written(path, {**pairs, "llama.residual_scale": 0.5}, named)
    capsys.readouterr()
    load(path, "float32")
    said = capsys.readouterr().err
    assert "not understood and ignored: llama.residual_scale" in said
    assert "tokenizer.ggml.model is 'none'" in said
    named["blk.0.attn_gate.weight"] = torch.zeros(4, 4)
    refused("no rule claims: blk.0.attn_gate.weight")
