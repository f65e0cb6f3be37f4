"""What quantised weights take in memory, against loads of the very files."""

from __future__ import annotations

from pathlib import Path

import pytest

import minillm
from minillm.plan.budget import Question, budget
from minillm.plan.devices import device
from minillm.plan.report import lines
from tests.conftest import shared
from tests.helpers import tiny
from tests.helpers.blocks import SCHEME, quantise, read, write

FOLDERS = [
    "awq/b4-g64-asym", "gptq/b3-g64-sym", "mlx/affine4-g64", "bitsandbytes/nf4-double", "bitsandbytes/int8",
    "modelopt/nvfp4", "compressed-tensors/mxfp4a16", "compressed-tensors/fp8-block", "torchao/float8-wo",
]  # fmt: skip


def held(folder: Path, question: Question) -> int:
    report = budget(folder, question)
    assert report["format"] == "as stored"
    assert report["weight_bytes"] == report["held_bytes"]
    return report["held_bytes"]


@pytest.mark.parametrize("name", FOLDERS)
def test_to_the_byte_what_a_load_holds(name: str) -> None:
    """On this CPU, whose loops want tiles of rows, and in rows, as on a GPU."""
    folder = shared(f"quant/{name}")
    dtype = budget(folder, Question())["dtype"]
    for kernels, question in {"auto": Question(), "reference": Question(device=device("24GB"))}.items():
        model = minillm.load(folder, dtype, kernels=kernels).model
        assert held(folder, question) == sum(each.nbytes for each in model.parameters()), kernels


def test_fp8_with_what_stays_plain(tmp_path: Path) -> None:
    """Of latent attention too; the sentence says what it would be otherwise."""
    tiny.save(tmp_path / "base", *tiny.ROWS["deepseek_v3"])
    named, config = read(tmp_path / "base")
    for name in [name for name in named if name.endswith("proj.weight")]:
        named[name], named[f"{name}_scale_inv"] = quantise(named[name], named[name].dtype)
    write(tmp_path / "fp8", named, {**config, "quantization_config": SCHEME})
    model = minillm.load(tmp_path / "fp8", "float32").model
    assert held(tmp_path / "fp8", Question()) == sum(each.nbytes for each in model.parameters())
    text = " ".join(" ".join(lines(budget(tmp_path / "fp8", Question(device=device("24GB"))))).split())
    assert "as minillm holds it: with --dequantize it makes" in text


def test_nothing_is_held_of_plain_files() -> None:
    report = budget(shared("checkpoints/stories260K"), Question())
    assert (report["held_bytes"], report["format"]) == (None, "as stored")
