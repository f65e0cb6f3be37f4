"""What a config says of how its files are stored, where there are none to look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from minillm.plan.budget import Question, budget
from minillm.plan.devices import device
from minillm.plan.layouts import METHODS
from minillm.plan.report import lines
from tests.conftest import shared
from tests.helpers import tiny


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": ["x"]},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "gptq", "bits": 4, "group_size": 0},
        {"quant_method": "fp8", "weight_block_size": [64, 64]},
        {"quant_method": "fp8", "ignored_layers": [f"{number}*" for number in range(2000)]},
        {"quant_method": "mxfp4", "modules_to_not_convert": 7},  # rows of 172 values are no whole blocks
    ],
    ids=lambda section: str(section)[:60],
)
def test_unknown_schemes(section: object, tmp_path: Path) -> None:
    """One line says so, the size is not known, and all else is computed."""
    folder = tiny.changed(shared("checkpoints/stories260K"), tmp_path, quantization_config=section)
    report = budget(folder, Question())
    assert report["checkpoint_bytes"] is None
    assert "known" in report["checkpoint"]["notes"][0]
    assert report["format"] == "bfloat16"
    assert report["weight_bytes"] == report["formats"]["bfloat16"]["tensor_bytes"]


def test_a_scheme_that_is_not_read(tmp_path: Path) -> None:
    """Its size is known all the same, and for whom it is."""
    section = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}
    folder = tiny.changed(
        shared("real-configs/meta-llama__Meta-Llama-3-8B-Instruct"), tmp_path, quantization_config=section
    )
    text = " ".join(" ".join(lines(budget(folder, Question(device=device("h200"))))).split())
    assert "for an engine that reads fp8: minillm does not" in text


def test_packed_layouts() -> None:
    """A matrix of 16 rows and 384 columns at four bits in groups of 128: eight values in an int32."""
    section, shape = {"bits": 4, "group_size": 128}, (16, 384)
    assert METHODS["gptq"]("a.weight", shape, section) == {
        "a.qweight": ("I32", (48, 16)),
        "a.qzeros": ("I32", (3, 2)),
        "a.scales": ("F16", (3, 16)),
        "a.g_idx": ("I32", (384,)),
    }
    assert METHODS["awq"]("a.weight", shape, section) == {
        "a.qweight": ("I32", (384, 2)),
        "a.qzeros": ("I32", (3, 2)),
        "a.scales": ("F16", (3, 16)),
    }
    assert METHODS["awq"]("a.weight", shape, {"bits": 4, "group_size": -1})["a.scales"] == ("F16", (1, 16))
    with pytest.raises(ValueError, match="laid out is not known"):
        METHODS["gptq"]("a.weight", (2, 16, 384), section)


def test_lists_of_plain_modules(tmp_path: Path) -> None:
    """By full name, by its end, by a module around it, by a pattern."""
    source, out, mlp = shared("checkpoints/stories260K"), 64 * 64, 64 * 172
    whole = budget(tiny.changed(source, tmp_path, quantization_config={"quant_method": "fp8"}), Question())[
        "weight_bytes"
    ]
    for spared, matrices in {
        "model.layers.0.self_attn.o_proj": [out],
        "o_proj": 5 * [out],
        "model.layers.1.mlp": 3 * [mlp],
        "model.layers.1.self_attn.o_proj*": [out],
        "model.layers.*.self_attn.o_proj": 5 * [out],
        "o_pro": [],
        "lm_head": [],
    }.items():
        section = {"quant_method": "fp8", "modules_to_not_convert": [spared]}
        report = budget(tiny.changed(source, tmp_path, quantization_config=section), Question())
        # fp32 instead of fp8 and a factor
        assert report["weight_bytes"] - whole == sum(3 * each - 4 for each in matrices), spared


def test_a_dtype_that_is_not_stated(tmp_path: Path) -> None:
    """Files tell; without any it is the usual one."""
    source = shared("checkpoints/stories260K")
    folder = tiny.changed(source, tmp_path, dtype=..., torch_dtype=...)
    made = budget(folder, Question())["checkpoint"]
    assert made["dtype"] == "bfloat16"
    assert "bfloat16" in made["notes"][0]
    shutil.copy(source / "model.safetensors", folder)
    made = budget(folder, Question())["checkpoint"]
    assert (made["dtype"], made["difference_bytes"]) == ("float32", 0)
