"""Flags of the command that change the rate and what is kept of weights, over whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minillm.tune import state
from minillm.tune.__main__ import main
from tests.tune.conftest import ADAPTER, QUICK, STEPS, losses


def test_rates_are_those_of_the_schedule(data: str, tmp_path: Path) -> None:
    """Up in the first half, then down to a fifth; what decays is smaller at the end."""
    found, rates = {}, [1 / 3, 2 / 3, 1, 1, 0.6, 0.2]
    for decay in ("0", "20"):
        output = tmp_path / decay
        asked = ["--schedule", "linear", "--warmup", "0.5", "--floor", "0.2", "--decay", decay]
        assert main(["--data", data, "--output", str(output), *QUICK, *asked]) == 0
        kept = [json.loads(line)["rate"] for line in (output / "log.jsonl").read_text().splitlines()]
        assert kept == pytest.approx([5e-3 * each for each in rates])
        found[decay] = load_file(output / ADAPTER)
    for name, each in found["0"].items():
        if "lora_A" in name:
            assert found["20"][name].norm() < 0.8 * each.norm()  # the product of 1 - 20 rate is 0.67


def test_all_of_a_model_is_trained_in_16_bits_alone(data: str, tmp_path: Path) -> None:
    """Beside the weights lies no master copy, and they learn."""
    output = tmp_path / "out"
    asked = ["--full", "--bf16-weights", "--dtype", "bfloat16", "--schedule", "constant"]
    assert main([*asked, "--data", data, "--output", str(output), *STEPS]) == 0
    kept = load_file(output / state.LAST)
    assert {each.dtype for name, each in kept.items() if "#" not in name and name != state.ABOUT} == {torch.bfloat16}
    assert {name.partition("#")[2] for name in kept if "#" in name} == {"mean", "square"}
    assert losses(output)[-1] < losses(output)[0]
