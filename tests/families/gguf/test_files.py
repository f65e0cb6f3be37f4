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
from minillm.spec import ProportionalScaling
from tests.families.gguf.converter import SHIFTED, STILL, converted, joined, said, written
from tests.families.gguf.stated import metadata
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


def test_gate_and_up_of_experts_in_one(tmp_path: Path) -> None:
    """As the converter writes those of Gemma 4; and a factor of each expert is a parameter, not one of its matrix."""
    architecture, family, changes = VARIANTS["gemma4 (experts)"]
    tiny.save(tmp_path / "folder", family, changes)
    model = load(tmp_path / "folder", "float32", "cpu", "reference").model
    named, pairs = joined(model, architecture), metadata(architecture, said(tmp_path / "folder"))
    for i in range(len(model.spec.layers)):
        parts = [named.pop(f"blk.{i}.ffn_{part}_exps.weight") for part in ("gate", "up")]
        named[f"blk.{i}.ffn_gate_up_exps.weight"] = torch.cat(parts, dim=1)
    written(tmp_path / "model.gguf", pairs, named)
    found = load(tmp_path / "model.gguf", "float32", "cpu", "reference").model.state_dict()
    for name, values in model.state_dict().items():
        assert torch.equal(values, found[name]), name
    named["blk.0.ffn_gate_up_exps.weight"] = named["blk.0.ffn_gate_up_exps.weight"][:, 1:]
    written(tmp_path / "model.gguf", pairs, named)
    with pytest.raises(ValueError, match="ffn_gate_up_exps has 39 rows an expert, which are no two equal halves"):
        load(tmp_path / "model.gguf", "float32", "cpu", "reference")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("gemma4", {"feed_forward_length": [80, 80, 160, 99]}, "may have twice the width of the others"),
    ("gemma4", {"attention.value_length": 10}, "attention.value_length is 10; heads of this family are 12 wide"),
    ("gemma4", {"rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'; this family scales by a tensor"),
    ("baichuan", {"block_count": 40}, "that of the 13B models, whose positions have ALiBi"),
    ("qwen", {"feed_forward_length": 81}, "is that of two equal parts, and odd"),
    ("glm4moe", {"expert_gating_func": 1}, "glm4moe.expert_gating_func is 1; this family's is 2"),
    ("hy_v3", {"expert_shared_feed_forward_length": 21}, "21 is no multiple of 20 of one expert"),
    ("hy_v3", {"expert_weights_norm": False}, "expert_weights_norm is not true"),
    ("ernie4_5-moe", {"expert_shared_feed_forward_length": 21}, "21 is no multiple of 20"),
    ("starcoder", {"attention.head_count_kv": 2}, "head_count_kv is 2; all heads of this family share one"),
    ("bloom", {"feed_forward_length": 80}, "feed_forward_length is 80; this family's is four times"),
    ("granitemoe", {"expert_shared_feed_forward_length": 8}, "is 8; this family shares none"),
    ("falcon", {"attention.head_count_kv": 2}, "head_count_kv is 2; files of the 7B"),
]


@pytest.mark.parametrize(("variant", "changes", "words"), WRONG)
def test_what_no_family_has(variant: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    architecture, family, own = VARIANTS[variant]
    tiny.save(tmp_path / "folder", family, own)
    named = joined(load(tmp_path / "folder", "float32", "cpu", "reference").model, architecture)
    pairs = metadata(architecture, said(tmp_path / "folder"))
    written(tmp_path / "a.gguf", pairs | {f"{architecture}.{key}": value for key, value in changes.items()}, named)
    with pytest.raises(ValueError, match=words) as error:
        families.resolve(config.read(hub.resolve(tmp_path / "a.gguf")))
    assert "\n" not in str(error.value)


def test_pairs_that_turn(tmp_path: Path) -> None:
    """Of layers without a window: the first of each head, all by one factor; other tensors say something else."""
    architecture, family, changes = VARIANTS["gemma4"]
    tiny.save(tmp_path / "folder", family, changes)
    named = joined(load(tmp_path / "folder", "float32", "cpu", "reference").model, architecture)
    pairs, path = metadata(architecture, said(tmp_path / "folder")), tmp_path / "a.gguf"

    def read(*factors: float) -> Any:
        written(path, pairs, {**named, "rope_freqs.weight": torch.tensor(factors)})
        return families.resolve(config.read(hub.resolve(path)))[0].layers[-1].attention.rope.scaling  # type: ignore[union-attr]

    assert read(2.0, STILL, STILL, STILL, STILL, STILL) == ProportionalScaling(1 / 6, 2.0)
    assert read(1.0, 1.0, 1.0, 1.0, 1.0, STILL) == ProportionalScaling(5 / 6)
    assert read(*[1.0] * 6) is None
    for factors in ([1.0, 2.0, *[STILL] * 4], [1.0, STILL, 1.0, STILL, STILL, STILL]):
        with pytest.raises(ValueError, match="has factors that differ"):
            read(*factors)


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
    pairs["general.architecture"] = "rwkv7"
    refused("'rwkv7'", "qwen3moe")
    pairs["general.architecture"] = "llama"
    written(path, {**pairs, "llama.residual_scale": 0.5}, named)
    capsys.readouterr()
    load(path, "float32")
    said = capsys.readouterr().err
    assert "not understood and ignored: llama.residual_scale" in said
    assert "tokenizer.ggml.model is 'none'" in said
    named["blk.0.attn_gate.weight"] = torch.zeros(4, 4)
    refused("no rule claims: blk.0.attn_gate.weight")
