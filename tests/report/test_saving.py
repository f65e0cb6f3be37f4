"""Checkpoints as GGUF files: what llama.cpp's own converter and tools make of the same ones, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from minillm import config, families, hub, quantize
from minillm.families.gguf import described as gguf_described
from minillm.loading import load
from minillm.model.decoder import skeleton
from minillm.report.saving import described, write_gguf
from minillm.weights import ints
from minillm.weights.gguf import reader, tensors
from minillm.weights.gguf.mixtures import MIXTURES
from tests.conftest import shared
from tests.families.gguf.converter import joined
from tests.families.gguf.converter import said as stated
from tests.families.gguf.stated import metadata
from tests.families.gguf.variants import VARIANTS
from tests.helpers import tiny
from tests.helpers.rows import BASE, ROWS
from tests.weights.gguf.test_fixtures import only

NEAR = 2e-5  # of the largest logit


def written(folder: Path, file: Path, mixture: str = "f32") -> reader.Contents:
    write_gguf(file, folder, config.read(folder), mixture)
    return reader.read(file)


def values(entry: reader.Entry) -> torch.Tensor:
    return tensors.stored(entry).values().float().view(entry.shape)


# What may be otherwise: 0 for nothing, a default that is written, how an image's positions are split.
FREE = ("attention.q_lora_rank", "weights_norm", "rope.dimension_sections")
NOT_RUN = {  # variants that are read all the same
    "deepseek2 (v2)": "it takes groups of experts by the best two",
    "seed_oss biases": "its attention has biases on the way in alone",
    "exaone4 (windows)": "windows are for models of 64 layers",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture(variant: str, tmp_path: Path) -> None:
    """The tensors and numbers of a file by tables of `converter.py`, and the same model when it is read."""
    architecture, family, changes = VARIANTS[variant]
    folder, file = tmp_path / "folder", tmp_path / "model.gguf"
    folder.mkdir()
    tiny.save(folder, family, {**changes, "num_key_value_heads": 6} if architecture == "olmoe" else changes)
    if variant in NOT_RUN:
        with pytest.raises(ValueError, match=NOT_RUN[variant]):
            written(folder, file)
        return
    contents, model = written(folder, file), load(folder, "float32", "cpu", "reference").model
    expected = joined(model, architecture)
    factors = {name for name in contents.entries if name.startswith("rope_factors")}
    assert set(contents.entries) - factors == set(expected)
    for name, each in expected.items():
        assert torch.equal(values(contents.entries[name]), each), name
    said = metadata(architecture, stated(folder))
    named = {key: value for key, value in said.items() if not key.endswith(FREE)}
    for key, value in named.items():
        own = contents.metadata[key]
        like = own.dtype if isinstance(own, np.ndarray) else np.float32 if isinstance(own, float) else None
        assert np.array_equal(own, np.asarray(value, like)), key
    again = load(file, "float32", "cpu", "reference").model
    assert gguf_described.difference(model.spec, again.spec, None) is None
    for name, parameter in model.state_dict().items():
        assert (parameter - again.state_dict()[name]).abs().max() <= 2**-23, name  # 1 is added to norms and taken away


def test_positions_of_layers_with_a_window(tmp_path: Path) -> None:
    """Those of Gemma 3 have a base of their own, and their order may be another than every sixth without one."""
    changes = {"rope_local_base_freq": 700.0, "rope_theta": 5000.0, "sliding_window": 5, "sliding_window_pattern": 3}
    values = {"model_type": "gemma3_text", **BASE, "head_dim": 12, "query_pre_attn_scalar": 12, **changes}
    spec, _, _ = families.resolve(values)
    said = described(skeleton(spec, torch.float32), values, "f32").metadata
    names = ("rope.freq_base_swa", "rope.freq_base", "attention.sliding_window", "attention.sliding_window_pattern")
    assert [said[f"gemma3.{name}"] for name in names] == [700.0, 5000.0, 5, 3]


# Files of the real converter and tools, what they are made of, and by which name.
MADE = [
    ("story-qwen-256-Q4_K_M", "quant/base/story-qwen-256", "q4_k_m"),
    ("story-qwen-256-Q6_K", "quant/base/story-qwen-256", "q6_k"),
    *((f"stories260K-{kind}", "checkpoints/stories260K", kind.lower())
      for kind in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "IQ4_NL")),
    ("stories-gemma2-Q8_0", "checkpoints/stories-gemma2", "q8_0"),
    ("stories-qwen3-moe-Q8_0", "checkpoints/stories-qwen3-moe", "q8_0"),
    ("stories-deepseek-v3-Q8_0", "checkpoints/stories-deepseek-v3", "q8_0"),
]  # fmt: skip
OTHERWISE = {  # what is not as the converter has it, and why
    "general.name": "the folder's name as it is",
    "general.version": "is guessed from the folder's name", "general.basename": "is guessed from the folder's name",
    "general.size_label": "is a count that the tensors tell",
    "tokenizer.ggml.scores": "are -1000 for every token, as tokenizer.json has none: here those of its merges",
    "tokenizer.ggml.add_sep_token": "is false, as without it",
}  # fmt: skip
SEARCHED = ("Q4_K", "Q6_K", "IQ4_NL")  # whose scales may be others that are as good


@pytest.mark.parametrize(("name", "folder", "mixture"), MADE)
def test_as_the_converter_has_it(name: str, folder: str, mixture: str, tmp_path: Path) -> None:
    """Key by key and byte by byte."""
    theirs, ours = (
        reader.read(only(shared(f"quant/gguf/{name}"))),
        written(shared(folder), tmp_path / "a.gguf", mixture),
    )
    for key, value in theirs.metadata.items():
        if key in OTHERWISE:
            continue
        own = ours.metadata[key]
        if name.startswith("story-qwen") and key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            value, own = list(value), list(own)
            assert {own.pop(782), value.pop(782)} & {"[PAD782]", 5}  # transformers adds a token of the class there
        assert type(own) is type(value), key
        assert np.array_equal(own, value) if isinstance(value, np.ndarray) else own == value, key
    assert set(theirs.entries) == set(ours.entries)
    for tensor, entry in theirs.entries.items():
        own_entry = ours.entries[tensor]
        assert (own_entry.kind.name, own_entry.shape) == (entry.kind.name, entry.shape), tensor
        if entry.kind.name not in SEARCHED:
            assert raw(own_entry) == raw(entry), tensor


def raw(entry: reader.Entry) -> bytes:
    return entry.source.read(entry.start, entry.nbytes)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_package_reads_the_same(mixture: str, tmp_path: Path) -> None:
    """That of llama.cpp's authors: all keys, and tensors bit for bit."""
    folder = shared("quant/base/story-qwen-256")
    ours, theirs = written(folder, tmp_path / "a.gguf", mixture), gguf.GGUFReader(tmp_path / "a.gguf")
    assert {key for key in theirs.fields if not key.startswith("GGUF.")} == set(ours.metadata)
    for each in theirs.tensors:
        made = gguf.dequantize(each.data, each.tensor_type)
        assert np.array_equal(made.reshape(-1), values(ours.entries[each.name]).reshape(-1).numpy()), each.name


def logits(path: Path) -> torch.Tensor:
    llm = load(path, "float32", "cpu", "reference")
    with torch.no_grad():
        return llm.model(torch.arange(5, 45)[None])[0]


@pytest.mark.parametrize("name", ["stories260K", "stories-mixtral", "stories-phi3", "stories-gemma2"])
def test_the_same_logits(name: str, tmp_path: Path) -> None:
    folder = shared(f"checkpoints/{name}")
    written(folder, tmp_path / "a.gguf")
    exact = logits(folder)
    assert (logits(tmp_path / "a.gguf") - exact).abs().max() <= NEAR * exact.abs().max()


SOURCES = [
    "quant/gguf/zoo-llama-256",  # 27 kinds of blocks, rows turned
    "quant/gguf/stories-deepseek-v3-Q8_0",  # keys and values apart
    "quant/compressed-tensors/fp8-dynamic-channel",
    "quant/compressed-tensors/w4a16-g64-sym",
]


@pytest.mark.parametrize("name", SOURCES)
def test_of_quantised_checkpoints(name: str, tmp_path: Path) -> None:
    folder = hub.resolve(shared(name))
    written(folder, tmp_path / "a.gguf")
    exact = logits(folder)
    assert (logits(tmp_path / "a.gguf") - exact).abs().max() <= NEAR * exact.abs().max()


@pytest.mark.parametrize("scheme", [("int8",), ("int4",), ("int4", 32, False)])
@pytest.mark.parametrize("row", ["llama", "qwen3_moe", "deepseek_v3"])
def test_of_integers(scheme: tuple[Any, ...], row: str, tmp_path: Path) -> None:
    """A folder of integers is dequantised; of the model that has them every parameter is then plain."""
    family, changes = ROWS[row] if row != "deepseek_v3" else VARIANTS["deepseek2 (v3)"][1:]
    (tmp_path / "plain").mkdir()
    tiny.save(tmp_path / "plain", family, changes)
    quantize.quantize(tmp_path / "plain", tmp_path / "made", ints.scheme(*scheme))
    written(tmp_path / "made", tmp_path / "a.gguf")
    exact = logits(tmp_path / "made")
    assert (logits(tmp_path / "a.gguf") - exact).abs().max() <= NEAR * exact.abs().max()
    assert (logits(tmp_path / "plain") - exact).abs().max() > 100 * NEAR * exact.abs().max()


REFUSED = {
    "llama-gelu": "ffn.activation is gelu, a file of it is read as silu", "llama-dynamic": "rope.scaling is Dynamic",
    "llama-yarn all": "attention_factor is 0.9", "mistral-window": "window is 5, a file of it is read as None",
    "qwen3-bias": "qkv_bias is True", "gpt_oss-odd": "window is None, a file of it is read as 9",
    "plamo": "no GGUF architecture is known here for model_type 'plamo'; written are llama, mistral",
    "olmoe": "it wants as many heads of keys as of queries", "olmoe-clip": "router.renormalize is True",
    "deepseek-renormalised": "it does not divide the weights", "phi-norms": "no name of a tensor is known for layers.0",
    "deepseek_v3-half": "rope.layout is half", "gemma2": "attention.scores.scale is 0.2236",
    "qwen3_5_text": "its recurrent layers have keys and values of one size",
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED)
def test_what_llama_cpp_would_compute_otherwise(row: str, tmp_path: Path) -> None:
    """One line, and no file."""
    (tmp_path / "folder").mkdir()
    tiny.save(tmp_path / "folder", *ROWS[row])
    with pytest.raises(ValueError, match=REFUSED[row].replace("(", r"\(")) as error:
        written(tmp_path / "folder", tmp_path / "a.gguf")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a.gguf").exists()
