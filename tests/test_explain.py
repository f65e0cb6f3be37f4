"""explain: everything about a checkpoint without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import shared
from safetensors.torch import load_file, save_file

from minillm import explain
from minillm.hub import DEMO


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert explain.main([*arguments]) == 0
    return capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, "--weights", str(DEMO), "--json"))
    assert report["model_type"] == "llama"
    assert report["parameter_count"] == sum(t.numel() for t in load_file(DEMO / "model.safetensors").values())
    for key in ("unclaimed_tensors", "unfilled_parameters", "dropped_tensors", "misshapen_tensors"):
        assert report[key] == []
    assert report["spec"]["kind"] == "Decoder"
    assert report["spec"]["layers"][0]["attention"]["kind"] == "GQA"
    assert len(report["spec"]["layers"]) == 4


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys)
    assert "layers 0 to 3:" in out
    assert "GQA(num_heads=4, num_kv_heads=2, head_dim=32, rope=Rope(dim=32" in out
    assert "unclaimed tensors: 0" in out


def test_an_index_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared("real-configs/meta-llama__Llama-2-7b-hf")
    report = json.loads(run(capsys, "--weights", str(folder), "--json"))
    assert report["parameter_count"] == 6_738_415_616
    assert len(report["dropped_tensors"]) == 32  # rotary frequencies of early exports
    assert report["misshapen_tensors"] is None  # an index knows no shapes


def test_a_config_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared("real-configs/meta-llama__Llama-3.1-405B")
    out = run(capsys, "--weights", str(folder))
    assert "405,853,388,800 parameters" in out
    assert "unclaimed tensors: not known" in out
    assert "layers 0 to 125:" in out


def test_what_does_not_fit_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(DEMO / "model.safetensors")
    tensors["surprise"] = tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"][:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((DEMO / "config.json").read_text())
    report = json.loads(run(capsys, "--weights", str(tmp_path), "--json"))
    assert report["unclaimed_tensors"] == ["surprise"]
    assert report["unfilled_parameters"] == ["norm.weight"]
    assert report["misshapen_tensors"] == ["model.layers.0.mlp.down_proj.weight"]


def test_a_quantised_checkpoint_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared("real-configs/bnb__Llama-3.1-8B-Instruct")
    report = json.loads(run(capsys, "--weights", str(folder), "--json"))
    assert report["quantization"] == "bitsandbytes int8"
    assert report["parameter_count"] == 8_030_261_248


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main(["--weights", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
