"""Names and heads that differ from the published ones: what transformers makes of the same file is what must come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm.guard.jsonfile import read_json
from minillm.quantize import quantize
from minillm.report.examine import explain
from minillm.weights import ints
from minillm.weights.save import save
from tests.helpers import oracles, tiny
from tests.helpers.tiny import refused

FP32 = 2e-5  # tests/families/test_parity.py
MIXTURES = ("mixtral", "tanuki", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "deepseek_v2", "deepseek_v3", "kimi_k2")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, named: dict[str, torch.Tensor]) -> None:
    save_file({name: each.clone() for name, each in named.items()}, folder / "model.safetensors", {"format": "pt"})


def parameters(folder: Path, **options: object) -> dict[str, torch.Tensor]:
    return dict(minillm.load(folder, **options).model.named_parameters())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(each, other[name]) for name, each in one.items())


def as_transformers(folder: Path) -> None:
    tokens = tiny.tokens(97, 1, 12)
    expected = tiny.logits(tiny.reference(folder), tokens)
    assert (minillm.load(folder).model(tokens) - expected).abs().max() <= FP32


@pytest.fixture(params=["llama", "gpt_neox", "gemma3"])
def untied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder with a head of its own, and what the head is called there: in three families three names."""
    family, folder = request.param, tmp_path / "untied"
    kind = "gemma3_text" if family == "gemma3" else family
    overrides = tiny.ROWS[kind][1] if kind in tiny.ROWS else {}
    tiny.save(folder, kind, {**overrides, "tie_word_embeddings": False})
    head = {"llama": "lm_head.weight", "gpt_neox": "embed_out.weight"}.get(family, "language_model.lm_head.weight")
    if family == "gemma3":  # as the large ones are published
        rewrite(folder, {f"language_model.{name}": each for name, each in tensors(folder).items()})
    assert head in tensors(folder)
    return folder, head


@torch.no_grad()
def test_another_head_than_the_embedding(
    untied: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The word of a config does not drop it: the model is that of a config that says so, for a load and for good."""
    folder, head = untied
    expected = parameters(folder)
    capsys.readouterr()
    tiny.edit_config(folder, tie_word_embeddings=True)
    assert same(parameters(folder), expected)
    assert head in capsys.readouterr().err
    assert explain(folder)["head_to_compare"] == head
    if not head.startswith("language_model."):
        as_transformers(folder)
    quantize(folder, tmp_path / "int8", ints.scheme("int8"))
    assert read_json(tmp_path / "int8/config.json")["tie_word_embeddings"] is False
    assert same(parameters(tmp_path / "int8"), parameters(folder, quantize="int8"))


def test_a_head_that_differs_a_little(untied: tuple[Path, str]) -> None:
    """One value, or the type alone: bfloat16 beside float32 is a rounded head."""
    folder, head = untied
    named = tensors(folder)
    embedding = next(each for name, each in named.items() if "embed" in name and name != head)
    other = embedding.clone()
    other[-1, -1] += 1
    for each in (other, embedding.bfloat16()):
        rewrite(folder, {**named, head: each})
        tiny.edit_config(folder, tie_word_embeddings=False)
        expected = parameters(folder, dtype="float32")
        tiny.edit_config(folder, tie_word_embeddings=True)
        assert same(parameters(folder, dtype="float32"), expected)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_copy_of_the_embedding(
    untied: tuple[Path, str], suffix: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Tied as the config says and nothing said; also where it is the only one that is stored, as by `save_model`."""
    folder, head = untied
    tiny.edit_config(folder, tie_word_embeddings=True)
    name = next(name for name in tensors(folder) if "embed" in name and name != head)
    named = tensors(folder)
    del named[head]
    rewrite(folder, named)
    expected = parameters(folder)
    capsys.readouterr()
    both = {**named, head: named[name]}
    only = {head if each == name else each: tensor for each, tensor in named.items()}
    for case in (both, only):
        if suffix == "bin":
            (folder / "model.safetensors").unlink(missing_ok=True)
            torch.save(case, folder / "pytorch_model.bin")
        else:
            rewrite(folder, case)
        assert same(parameters(folder), expected)
        assert "embedding" not in capsys.readouterr().err
        assert explain(folder)["unclaimed_tensors"] == explain(folder)["unfilled_parameters"] == []
    quantize(folder, tmp_path / "int8", ints.scheme("int8"))
    assert same(parameters(tmp_path / "int8"), parameters(folder, quantize="int8"))


@pytest.mark.parametrize("row", [*MIXTURES, "gpt_neox", "llama"])
def test_the_names_of_transformers_5(row: str, tmp_path: Path) -> None:
    """All experts of a layer in one tensor: the same model as from the published names, and back."""
    family, overrides = tiny.ROWS[row]
    model = oracles.build(family, {**tiny.BASE, **overrides})
    tiny.randomise(model)
    oracles.save(model, tmp_path / "published", family)
    model.save_pretrained(tmp_path / "new", save_original_format=False)
    tiny.edit_config(tmp_path / "new", model_type=family)
    stacked = any(name.endswith("experts.gate_up_proj") for name in tensors(tmp_path / "new"))
    assert stacked == (row in MIXTURES)
    expected = parameters(tmp_path / "published")
    assert same(parameters(tmp_path / "new"), expected)
    report = explain(tmp_path / "new")
    assert [report[key] for key in ("unclaimed_tensors", "unfilled_parameters", "misshapen_tensors")] == [[]] * 3
    quantize(tmp_path / "new", tmp_path / "int4", ints.scheme("int4"))
    assert same(parameters(tmp_path / "int4"), parameters(tmp_path / "published", quantize="int4"))


def test_stacked_experts_of_another_number(tmp_path: Path) -> None:
    family, overrides = tiny.ROWS["mixtral"]
    model = oracles.build(family, {**tiny.BASE, **overrides})
    model.save_pretrained(tmp_path, save_original_format=False)
    named = tensors(tmp_path)
    name = "model.layers.1.mlp.experts.down_proj"
    rewrite(tmp_path, {**named, name: named[name][:-1]})
    refused(tmp_path, f"{name} is [4, 48, 80], the config needs [5, 48, 80]")
    rewrite(tmp_path, {**named, name: named[name].flatten(0, 1)})
    refused(tmp_path, f"{name} is [240, 80], the config needs [5, 48, 80]")


def test_a_model_written_back_has_the_published_names(mixtures: Path, tmp_path: Path) -> None:
    from minillm.families import resolve

    model = minillm.load(mixtures / "mixtral").model
    _, rules, _ = resolve(read_json(mixtures / "mixtral/config.json"))
    save(tmp_path / "again.safetensors", dict(model.named_parameters()), rules, model.destinations())
    assert load_file(tmp_path / "again.safetensors").keys() == tensors(mixtures / "mixtral").keys()


BEGINNINGS = {
    "none": lambda name: name.removeprefix("model."),
    "doubled": lambda name: f"model.{name}" if name.startswith("model.") else name,
    "around all": lambda name: f"model.{name}",
}
WRAPPED = {
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "module.": lambda name: f"module.{name}",
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "_orig_mod.module.": lambda name: f"module._orig_mod.{name}",
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_names_that_begin_otherwise(kind: str, folder: Path, saved: Path) -> None:
    """As transformers reads them."""
    rewrite(folder, {BEGINNINGS[kind](name): each for name, each in tensors(folder).items()})
    assert same(parameters(folder), parameters(saved))
    as_transformers(folder)


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_with_a_wrapper_in_front(
    wrapper: str, folder: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = parameters(saved)
    rewrite(folder, {WRAPPED[wrapper](name): each for name, each in tensors(folder).items()})
    capsys.readouterr()
    assert same(parameters(folder), expected)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert repr(wrapper) in err


def test_layers_that_were_compiled_one_by_one(folder: Path, saved: Path) -> None:
    rewrite(folder, {name.replace(".mlp.", "._orig_mod.mlp."): each for name, each in tensors(folder).items()})
    assert same(parameters(folder), parameters(saved))


def test_a_tensor_under_two_beginnings(folder: Path) -> None:
    named = tensors(folder)
    rewrite(folder, {**named, "norm.weight": named["model.norm.weight"]})
    refused(folder, "1 tensors for a parameter filled already: norm.weight")


def test_an_adapter_that_was_not_merged(folder: Path) -> None:
    named = {f"base_model.model.{name}": each for name, each in tensors(folder).items()}
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    rewrite(folder, {**named, name: torch.zeros(2, 48)})
    refused(folder, name, "merge_and_unload")


def test_a_body_without_a_head(folder: Path) -> None:
    """Saved by AutoModel, as embedding models are."""
    named = tensors(folder)
    del named["lm_head.weight"]
    for case in (named, {name.removeprefix("model."): each for name, each in named.items()}):
        rewrite(folder, case)
        with pytest.raises(ValueError, match="no lm_head in the weights, and tie_word_embeddings is false") as caught:
            minillm.load(folder)
        assert "download" not in str(caught.value)
