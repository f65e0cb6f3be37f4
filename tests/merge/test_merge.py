"""Merged checkpoints: what PEFT's `merge_and_unload` makes of the same model, rounded once.

In fp32 the largest difference seen of a weight was 2.4e-7, of weights up to 2, over all rows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm import merge, quantize
from minillm.adapters.attach import attach
from minillm.adapters.config import AdapterConfig
from minillm.adapters.read import read
from minillm.weights import ints
from minillm.weights.gguf import reader, tensors
from tests.adapters.test_peft import BOTH, LINEAR, OPTIONS, old_experts
from tests.conftest import exit_code
from tests.helpers import adapters, tiny
from tests.weights.test_mxfp4 import pair as pair

ULPS = 2**-21  # of values up to 2: what sums of a few products in another order differ by
TIED = ["tied embedding", "tied head", "saved tied head", "scaled embedding"]  # which PEFT merges into both
UNMERGED = ["bias of B"]


def merged(folder: Path, *more: str, adapter: Path | None = None, output: str = "merged") -> Path:
    """What the command makes of a model and the adapter beside it."""
    command = ["--weights", str(folder), "--adapter", str(adapter or folder / "adapter")]
    assert merge.main([*command, "--output", str(folder / output), *more]) == 0
    return folder / output


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in [*TIED, *UNMERGED]])
def test_as_peft_merges(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers loads what is written, and every parameter and buffer is what PEFT makes of it."""
    theirs, _ = adapters.made(tmp_path, OPTIONS[name][0], **OPTIONS[name][1])
    before = tiny.reference(tmp_path).state_dict()
    folder = merged(tmp_path, "--json")
    report = json.loads(capsys.readouterr().out)
    expected, found = theirs.merge_and_unload().state_dict(), tiny.reference(folder).state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).abs().max() <= ULPS * value.abs().max().clamp(min=1), key
    assert any(not torch.equal(found[key], value) for key, value in before.items())
    assert report["logits"]["difference"] <= 2e-5
    assert report["logits"]["effect"] > 0.1
    assert report["changed"] >= sum(int((value != before[key]).sum()) for key, value in expected.items()) * 0.99


@pytest.mark.parametrize("name", TIED)
def test_tied_matrices_become_two(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT itself merges into the one matrix, so its logits before that are the ones to have."""
    theirs, _ = adapters.made(tmp_path, OPTIONS[name][0], **OPTIONS[name][1])
    tokens = tiny.tokens(97, 2, 20)
    expected = tiny.logits(theirs, tokens)
    folder = merged(tmp_path)
    assert "it gets two\n" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    for model in (tiny.reference(folder), minillm.load(folder, kernels="reference").model):
        with torch.no_grad():
            logits = model(tokens)
        assert (getattr(logits, "logits", logits) - expected).abs().max() <= 2e-5
    tied = merged(tmp_path, "--quantize", "int8", output="int8")
    held = minillm.load(tied, device="cpu").model
    assert held.head is not None


@pytest.mark.parametrize("spelling", ["transposed", "each"])
def test_older_spellings_of_experts(spelling: str, tmp_path: Path) -> None:
    theirs, adapter = old_experts(tmp_path, spelling)
    folder = merged(tmp_path, adapter=adapter)
    tokens = tiny.tokens(97, 2, 20)
    assert (tiny.logits(tiny.reference(folder), tokens) - tiny.logits(theirs, tokens)).abs().max() <= 2e-5


def test_several_are_added_up(tmp_path: Path) -> None:
    theirs, first = adapters.made(tmp_path, "qwen3", **LINEAR)
    first = first.rename(tmp_path / "first")
    other, second = adapters.made(tmp_path, "qwen3", r=2, target_modules=["v_proj", "o_proj"])
    del other
    folder = merged(tmp_path, "--adapter", str(second), adapter=first)
    theirs.load_adapter(str(second), "second")
    theirs.base_model.set_adapter(["default", "second"])
    expected = theirs.merge_and_unload(adapter_names=["default", "second"]).state_dict()
    for key, value in tiny.reference(folder).state_dict().items():
        assert (value - expected[key]).abs().max() <= ULPS, key


def shrink(folder: Path, factor: float) -> None:
    """An adapter of less effect."""
    path = folder / "adapter/adapter_model.safetensors"
    save_file({name: each * (factor if "lora_B" in name else 1) for name, each in load_file(path).items()}, path)


def test_rounding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In bf16 each weight is the exact one rounded once; those that do not move by it are counted."""
    adapters.made(tmp_path, "qwen3", **LINEAR)
    shrink(tmp_path, 0.003)
    path = tmp_path / "model.safetensors"
    stored = {name: each.bfloat16() for name, each in load_file(path).items()}
    save_file(stored, path)
    tiny.edit_config(tmp_path, dtype="bfloat16")
    capsys.readouterr()
    report = json.loads((merged(tmp_path, "--json"), capsys.readouterr().out)[1])
    exact = load_file(merged(tmp_path, "--dtype", "float32", "--no-compare", output="exact") / "model.safetensors")
    found = load_file(tmp_path / "merged/model.safetensors")
    assert all(torch.equal(each, exact[name].bfloat16()) for name, each in found.items())
    assert {each.dtype for each in exact.values()} == {torch.float32}
    assert json.loads((tmp_path / "exact/config.json").read_text())["dtype"] == "float32"
    changed = {name: each != stored[name].float() for name, each in exact.items()}
    assert report["changed"] == sum(int(each.sum()) for each in changed.values())
    assert report["unmoved"] == sum(int((each & (found[n] == stored[n])).sum()) for n, each in changed.items())
    assert report["unmoved"] > report["changed"] / 2
    assert report["logits"]["difference"] > 1e-4
    capsys.readouterr()
    merged(tmp_path, "--no-compare", output="again")
    share = report["unmoved"] / report["changed"]
    said = f"{share:.0%} of the {report['changed']:,} weights that it changes were left as they are by rounding\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("row", ["phi3", "gpt_neox", "mixtral", "qwen2-tied"])
def test_integers(row: str, kind: str, tmp_path: Path) -> None:
    """They are those that `quantize` makes of the exact weights."""
    more = {"target_modules": ["q_proj", "embed_tokens"]} if row == "qwen2-tied" else LINEAR
    adapters.made(tmp_path, row, **more)
    exact = merged(tmp_path, "--no-compare")
    quantize.quantize(exact, tmp_path / "expected", ints.scheme(kind))
    found, expected = (
        load_file(folder / "model.safetensors")
        for folder in (merged(tmp_path, "--quantize", kind, output="made"), tmp_path / "expected")
    )
    assert found.keys() == expected.keys()
    for name, each in found.items():
        assert torch.equal(each, expected[name]), name
    assert (tmp_path / "made/config.json").read_text() == (tmp_path / "expected/config.json").read_text()


@pytest.mark.parametrize("row", ["llama", "qwen2-tied", "mixtral"])
def test_a_file(row: str, tmp_path: Path) -> None:
    """Its tensors are those of the file that `quantize` writes of the exact weights."""
    more = {"target_modules": ["q_proj", "lm_head"]} if row == "qwen2-tied" else LINEAR
    adapters.made(tmp_path, row, **more)
    exact = merged(tmp_path, "--no-compare")
    quantize.to_file(exact, tmp_path / "expected.gguf", "q8_0")
    found, expected = (
        reader.read(file)
        for file in (merged(tmp_path, "--quantize", "q8_0", output="made.gguf"), tmp_path / "expected.gguf")
    )
    assert found.entries.keys() == expected.entries.keys()
    for name, each in found.entries.items():
        assert torch.equal(tensors.stored(each).values(), tensors.stored(expected.entries[name]).values()), name


@pytest.mark.parametrize("kind", ["int4", "gguf"])
def test_of_quantised_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are dequantised, and a line says so: what comes is the adapter beside the quantised ones."""
    monkeypatch.setitem(tiny.ROWS, "wide", ("llama", {"hidden_size": 96, "intermediate_size": 96}))
    adapters.made(tmp_path, "wide", **LINEAR)
    if kind == "gguf":
        source = tmp_path / "base.gguf"
        quantize.to_file(tmp_path, source, "q8_0")
    else:
        source = tmp_path / "base"
        quantize.quantize(tmp_path, source, ints.scheme(kind))
    command = ["--weights", str(source), "--adapter", str(tmp_path / "adapter"), "--dtype", "float32", "--json"]
    capsys.readouterr()
    assert merge.main([*command, "--output", str(tmp_path / "made")]) == 0
    out, err = capsys.readouterr()
    assert err.count("are dequantised first; an adapter trained on others than these") == 1
    assert json.loads(out)["logits"]["difference"] <= 2e-5
    assert "quantization_config" not in json.loads((tmp_path / "made/config.json").read_text())
    with torch.no_grad():
        llm = minillm.load(source, dtype="float32", kernels="reference")
        read(llm, tmp_path / "adapter")
        beside = llm.model(tiny.tokens(97, 1, 20))
        found = minillm.load(tmp_path / "made", kernels="reference").model(tiny.tokens(97, 1, 20))
    assert (found - beside).abs().max() <= 2e-5


def test_stacks_of_quantised_experts(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """MXFP4, whose experts lie in one tensor with gates and ups in turn: what comes of the same numbers in fp32."""
    made = attach(minillm.load(pair[1]), AdapterConfig(r=4, target_modules=["q_proj"], target_parameters=BOTH))
    adapters.randomise_ours(made)
    made.write(tmp_path / "adapter")
    found, expected = (tmp_path / name for name in ("found", "expected"))
    for source, output in zip(pair, (found, expected), strict=True):
        merged(source, "--dtype", "float32", "--no-compare", adapter=tmp_path / "adapter", output=str(output))
    models = [minillm.load(folder, kernels="reference").model.state_dict() for folder in (found, expected, pair[1])]
    assert all(torch.equal(each, models[1][name]) for name, each in models[0].items())
    assert all(
        not torch.equal(each, models[2][name])
        for name, each in models[0].items()
        if name.endswith(("experts.gate_up", "experts.down"))
    )


REFUSED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "a bias that there is none of": ({**LINEAR, "lora_bias": True}, [], "an adapter adds a bias (lora_bias)"),
    "DoRA and another": ({**LINEAR, "use_dora": True}, ["--adapter", "{d}/adapter"], "use_dora scales what other"),
    "replaced twice": (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        ["--adapter", "{d}/adapter"],
        "two adapters change head.weight, which one of them replaces",
    ),
    "no adapter": (LINEAR, ["--adapter", "{d}"], "no adapter_config.json"),
    "no folder": (LINEAR, ["--adapter", "{d}/nowhere"], "no adapter_config.json; give the folder of a PEFT adapter"),
    "output is there": (LINEAR, ["--output", "{d}"], "is there already; remove it or choose another --output"),
    "no kind": (LINEAR, ["--output", "{d}/a.gguf"], "is a GGUF file: say with --quantize in which kind"),
    "integers in a file": (LINEAR, ["--output", "{d}/a.gguf", "--quantize", "int4"], "say with --quantize in which"),
    "a file's kind": (LINEAR, ["--quantize", "q8_0"], "--quantize q8_0 is for a GGUF file: let --output end in .gguf"),
    "two types": (LINEAR, ["--quantize", "int8", "--dtype", "float32"], "--dtype float32 is for plain numbers"),
    "a group of nothing": (LINEAR, ["--group-size", "32"], "go with --quantize int4"),
    "nowhere": (LINEAR, ["--output", "{d}/x/a.gguf", "--quantize", "q8_0"], "no such folder; make it, or choose"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, more, message = REFUSED[name]
    adapters.made(tmp_path, "llama", **options)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    command = ["--weights", str(tmp_path), "--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "made")]
    command += [each.replace("{d}", str(tmp_path)) for each in more]
    assert exit_code(merge.main, command) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_out_of_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters.made(tmp_path, "llama", **LINEAR)
    (tmp_path / "secret").mkdir()
    shutil.move(tmp_path / "config.json", tmp_path / "secret/config.json")
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(tmp_path / "secret/config.json", base)
    shutil.move(tmp_path / "model.safetensors", base)
    (base / "generation_config.json").symlink_to(tmp_path / "secret/config.json")
    command = ["--weights", str(base), "--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "made")]
    assert merge.main(command) == 2
    assert "out of the checkpoint; put the file itself in its place" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("more", [[], ["--quantize", "int4"], ["--quantize", "q8_0"]])
def test_nothing_is_left_half_written(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full, say, after a few tensors."""
    adapters.made(tmp_path, "llama", **LINEAR)
    before, left = sorted(tmp_path.rglob("*")), iter(range(5))

    def made(*given: Any) -> Any:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        return original(*given)

    original = merge.Altered._made
    monkeypatch.setattr(merge.Altered, "_made", made)
    output = tmp_path / ("made.gguf" if "q8_0" in more else "made")
    command = ["--weights", str(tmp_path), "--adapter", str(tmp_path / "adapter"), "--output", str(output), *more]
    assert merge.main(command) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_logits_that_there_is_no_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not compared, and a line says so; what was written stays."""
    adapters.made(tmp_path, "llama", **LINEAR)
    monkeypatch.setattr(merge.memory, "available", lambda: 1000)
    capsys.readouterr()
    folder = merged(tmp_path, "--json")
    out, err = capsys.readouterr()
    assert "logits are not compared: that takes 0.0 GB and 0.0 GB are left" in err
    assert json.loads(out)["logits"] is None
    assert peft.PeftModel.from_pretrained(tiny.reference(folder), tmp_path / "adapter")
