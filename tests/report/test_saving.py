"""Checkpoints as GGUF files: what llama.cpp's own converter and tools make of the same ones, and the way back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
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
from tests.families.gguf.converter import joined, metadata
from tests.families.gguf.converter import said as stated
from tests.families.gguf.variants import VARIANTS
from tests.helpers import tiny
from tests.helpers.rows import BASE, ROWS
from tests.weights.gguf.test_fixtures import only
from tests.weights.gguf.test_writer import llama_python

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


SCRIPT = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=256, n_threads=1, verbose=False, type_k=0, type_v=0, logits_all=True)
prompt = json.loads(sys.argv[2])
ids = model.tokenize(prompt.encode(), add_bos=True, special=True)
model.eval(ids)
gaps, made = [], []
for _ in range(40):
    scores = model.scores[model.n_tokens - 1]
    best = sorted(scores)[-2:]
    made.append(int(scores.argmax()))
    gaps.append(float(best[1] - best[0]))
    model.eval(made[-1:])
print(json.dumps([ids, made, gaps, model.detokenize(made).decode(errors="replace"), model.metadata]))
"""


def llama_cpp(file: Path, prompt: str) -> tuple[list[int], list[int], list[float], str, Mapping[str, str]]:
    command = [llama_python(), "-c", SCRIPT, str(file), json.dumps(prompt)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.parametrize("mixture", ["f32", "q8_0", "q4_k_m"])
@pytest.mark.parametrize(
    "name", ["quant/base/story-qwen-256", "checkpoints/stories260K", "checkpoints/stories-mixtral"]
)
def test_llama_cpp_goes_on_with_the_same_text(name: str, mixture: str, tmp_path: Path) -> None:
    """From a file's own words. Of blocks, where llama.cpp rounds activations, the same tokens behind its own, but for
    near ties."""
    folder = shared(name)
    written(folder, tmp_path / "a.gguf", mixture)
    prompt = "Once upon a time, there was a little girl named Ümi."
    ids, made, gaps, text, said = llama_cpp(tmp_path / "a.gguf", prompt)
    llm = load(tmp_path / "a.gguf", "float32", "cpu", "reference")
    assert llm.tokenizer is not None
    assert ids == llm.tokenizer.encode(prompt) == load(folder, "float32", "cpu", "reference").tokenizer.encode(prompt)  # type: ignore[union-attr]
    with torch.no_grad():
        best = llm.model(torch.tensor([ids + made]))[0, len(ids) - 1 : -1].argmax(-1).tolist()
    clear = [i for i, gap in enumerate(gaps) if mixture == "f32" or gap > 0.5]
    assert [made[i] for i in clear] == [best[i] for i in clear]
    assert len(clear) >= 10
    if mixture == "f32":
        assert llm.generate(prompt, max_new_tokens=40, temperature=0, ignore_eos=True).text.strip() == text.strip()
    assert said["general.name"] == folder.name


IDS = """
import json, sys
from llama_cpp import Llama
ids = json.loads(sys.argv[2])
model = Llama(sys.argv[1], n_ctx=128, n_threads=1, verbose=False, logits_all=True)
model.eval(ids)
for _ in range(40):
    ids.append(int(model.scores[model.n_tokens - 1].argmax()))
    model.eval(ids[-1:])
print(json.dumps(ids))
"""
LARGER = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 64, "num_attention_heads": 4,
          "num_key_value_heads": 2, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
          "num_hidden_layers": 5}  # fmt: skip


@pytest.mark.parametrize("row", ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"])
def test_llama_cpp_goes_on_with_the_same_ids(row: str, tmp_path: Path) -> None:
    """Of recurrent layers, whose v heads have another order there."""
    family, changes = ROWS[row]
    (tmp_path / "folder").mkdir()
    tiny.save(tmp_path / "folder", family, {**changes, **LARGER})
    written(tmp_path / "folder", tmp_path / "a.gguf")
    ids = [3, 17, 9, 5, 42, 7]
    command = [llama_python(), "-c", IDS, str(tmp_path / "a.gguf"), json.dumps(ids)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    llm = load(tmp_path / "folder", "float32", "cpu", "reference")
    assert found == ids + llm.generate(prompt_ids=ids, max_new_tokens=40, temperature=0, ignore_eos=True).token_ids  # type: ignore[union-attr]


OF_FILES = """
import json, sys
import numpy as np
from llama_cpp import Llama
for path in json.loads(sys.argv[2]):
    model = Llama(path, n_ctx=64, n_threads=1, verbose=False, logits_all=True, type_k=0, type_v=0)
    model.eval(json.loads(sys.argv[1]))
    np.save(path + ".npy", np.array(model.scores[: model.n_tokens]))
"""
PLAIN = (
    "mistral3 seed_oss minimax-m2 exaone exaone4 qwen baichuan internlm2 chatglm glm4 ernie4_5 stablelm glm4moe dots1"
)
ROUNDED = ("gemma4", "falcon", "starcoder2")  # llama.cpp has GELU in a table of fp16
RUN = [
    variant
    for variant, (architecture, _, _) in VARIANTS.items()
    if architecture in (*PLAIN.split(), *ROUNDED, "hy_v3", "ernie4_5-moe", "mellum") and variant not in NOT_RUN
]


def test_llama_cpp_computes_the_same(tmp_path: Path) -> None:
    """The logits of every architecture that no published checkpoint here is of, in fp32."""
    python, ids = llama_python(), [3, 17, 9, 5, 42, 7, 60, 11, 2, 90, 33, 21]
    paths = {}
    for i, variant in enumerate(RUN):
        _, family, changes = VARIANTS[variant]
        tiny.save(tmp_path / str(i), family, changes)
        paths[variant] = tmp_path / f"{i}.gguf"
        written(tmp_path / str(i), paths[variant])
    subprocess.run([python, "-c", OF_FILES, json.dumps(ids), json.dumps([*map(str, paths.values())])], check=True)
    for variant, path in paths.items():
        with torch.no_grad():
            ours = load(path, "float32", "cpu", "reference").model(torch.tensor([ids]))[0].numpy()
        theirs, architecture = np.load(f"{path}.npy"), VARIANTS[variant][0]
        near = 2e-2 if architecture in ROUNDED else NEAR
        assert np.abs(ours - theirs).max() <= near * np.abs(ours).max(), variant
