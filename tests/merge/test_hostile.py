"""What cannot be merged: one line, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minillm import merge
from tests.adapters.test_peft import LINEAR
from tests.conftest import exit_code
from tests.helpers import adapters


def base_with(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def wider(folder: Path) -> None:
    """The adapter of another family, whose modules have other names."""
    adapters.made(folder / "other", "gpt_neox", **LINEAR)
    shutil.rmtree(folder / "adapter")
    shutil.move(folder / "other" / "adapter", folder / "adapter")


def other_ranks(folder: Path) -> None:
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank_pattern": {"q_proj": 3}}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an adapter of another base": (wider, "no module of the model is meant by"),
    "patterns that say other ranks": (other_ranks, "r, rank_pattern or"),
    "a tensor that lacks": (
        lambda folder: base_with(folder, lambda each: each.pop("model.layers.0.self_attn.q_proj.weight")),
        "1 parameters no tensor fills: layers.0.attention.qkv.weight[q]",
    ),
    "a base that is no number": (
        lambda folder: base_with(folder, lambda each: each["model.layers.1.mlp.up_proj.weight"][0].fill_(torch.nan)),
        "layers.1.ffn.gate_up.weight: values that are not finite",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_what_is_broken_is_refused_and_nothing_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = BROKEN[name]
    adapters.made(tmp_path, "llama", **LINEAR)
    change(tmp_path)
    base = tmp_path / "model"
    base.mkdir()
    for each in ("config.json", "model.safetensors"):
        shutil.move(tmp_path / each, base)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    given = {"--weights": base, "--adapter": tmp_path / "adapter", "--output": tmp_path / "made"}
    assert exit_code(merge.main, [str(each) for pair in given.items() for each in pair]) == 2
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1]
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
