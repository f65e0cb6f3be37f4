"""transformers as the reference: the same model as of the folder itself, whatever else the folder asks for."""

from __future__ import annotations

import builtins
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm.report import reference
from tests.helpers import oracles, oracles_wrapped, tiny

EAGER = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
# It has no class that generates text for those that read images too, Mistral Small 4 without them among these, and none
# of one without a first token.
LACKS = (*oracles.OWN, *oracles.SAME_AS, *oracles_wrapped.WRAPPED, "cwm", "mistral4", "phi4_multimodal")
KEYS = {row: {family, *(f"{family} {key}" for key in values)} for row, (family, values) in tiny.ROWS.items()}
KNOWN = itertools.accumulate(KEYS.values(), set.union, initial=set[str]())
# Those that have a key that no row of their family before them has.
NEW = [row for row, before in zip(KEYS, KNOWN, strict=False) if KEYS[row] - before]
ROWS = [row for row in NEW if tiny.ROWS[row][0] not in LACKS]
EVIL = "raise SystemExit('code of a checkpoint was run')"


def logits(model: Any) -> Tensor:
    return tiny.logits(model, tiny.tokens(model.config.get_text_config().vocab_size, 1, 9))


@pytest.mark.parametrize("row", ROWS)
def test_it_is_the_same_model(row: str, tmp_path: Path) -> None:
    """With no key of a config too few."""
    tiny.save(tmp_path, *tiny.ROWS[row])
    assert torch.equal(logits(reference.load(tmp_path, **EAGER)), logits(tiny.reference(tmp_path)))


HOSTILE = {
    "_attn_implementation": "kernels-community/flash-attn3",
    "attn_implementation": "flash_attention_2",
    "experts_implementation": "nobody/nothing",
    "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    "quantization_config": {},
    "num_labels": 10**30,
    "id2label": {"x": 1},
    "pad_token_id": 10**6,
    "eos_token_id": [10**6, -7],
    "bos_token_id": -7,
    "architectures": ["Evil"],
    "transformers_version": "evil",
    "dtype": "float16",
    "torchscript": True,
    "use_cache": False,
    "return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "chunk_size_feed_forward": -1,
    "problem_type": "no such",
    "initializer_range": -1e9,
    "tokenizer_class": "evil.Tokenizer",
    "pretraining_tp": 2,
    "task_specific_params": {"x": [3]},
    "custom_pipelines": {"x": {"impl": "evil.X"}},
}


def poison(folder: Path) -> None:
    """Files that transformers looks for beside the weights."""
    (folder / "evil.py").write_text(EVIL)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder / "other"), "r": 1})
    )
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "generation_config.json").write_text('{"max_new_tokens": "x", "cache_implementation": "evil"}')
    (folder / "pytorch_model.bin").write_bytes(b"not the one")


@pytest.mark.parametrize("key", [*HOSTILE, "files"])
def test_what_a_folder_asks_for_is_not_done(
    key: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anybody asked whether it may be."""

    def asked(*given: object) -> str:
        raise AssertionError(given)

    monkeypatch.setattr(builtins, "input", asked)
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    if key == "files":
        poison(folder)
    else:
        tiny.edit_config(folder, **{key: HOSTILE[key]})
    model = reference.load(folder, **EAGER)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model), logits(tiny.reference(saved)))


@pytest.mark.parametrize("family", ["deepseek", "kimi_k2", "plamo", "tanuki"])
def test_a_family_that_it_lacks(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused before anything of the folder is read by it, code that would fill the gap included."""
    row = next(row for row, (name, _) in tiny.ROWS.items() if name == family)
    tiny.save(tmp_path, *tiny.ROWS[row])
    tiny.edit_config(tmp_path, auto_map=HOSTILE["auto_map"])
    poison(tmp_path)
    with pytest.raises(ValueError, match=f"transformers cannot load this: .* knows no model_type '{family}'"):
        reference.load(tmp_path, **EAGER)


@pytest.mark.parametrize("error", [TypeError("x"), RuntimeError("a\nb"), KeyError("k"), AttributeError("y")])
def test_whatever_it_raises_is_one_line(error: Exception, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*given: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    with pytest.raises(ValueError, match=r"^[^\n]*: transformers cannot load this \([^\n]*\)$"):
        reference.load(saved, **EAGER)


def images(folder: Path) -> None:
    """A folder in the form of Gemma 3 that reads images."""
    text = transformers.Gemma3TextConfig(**{**tiny.BASE, **tiny.ROWS["gemma3"][1]})
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**size, "image_size": 16, "patch_size": 8, "vision_use_head": False}
    config = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config)
    tiny.randomise(model)
    model.save_pretrained(folder)


def test_a_config_in_sections(tmp_path: Path) -> None:
    images(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **EAGER).eval()
    assert torch.equal(logits(reference.load(tmp_path, **EAGER)), logits(theirs))


@pytest.mark.parametrize("kind", ["bin", "shards", "bin shards"])
def test_files_of_other_names(kind: str, saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    tensors = list(load_file(saved / "model.safetensors").items())
    parts = [dict(tensors[:5]), dict(tensors[5:])] if "shards" in kind else [dict(tensors)]
    stem, ending = ("pytorch_model", "bin") if "bin" in kind else ("model", "safetensors")
    located = {}
    for number, part in enumerate(parts):
        name = f"part {number}.{ending}" if "shards" in kind else f"{stem}.{ending}"
        torch.save(part, tmp_path / name) if "bin" in kind else save_file(part, tmp_path / name, {"format": "pt"})
        located |= dict.fromkeys(part, name)
    if "shards" in kind:
        (tmp_path / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": located}))
    assert torch.equal(logits(reference.load(tmp_path, **EAGER)), logits(tiny.reference(saved)))
