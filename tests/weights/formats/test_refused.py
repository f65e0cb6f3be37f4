"""Formats that are not read are called by their names, whether config.json says so or only the tensors do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minillm.weights.formats.refused import ENDINGS, NAMES
from tests.conftest import shared
from tests.helpers import tiny
from tests.weights.formats.by_hand import exchange, found

QUERY = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("method", NAMES)
def test_by_the_name_in_the_config(folder: Path, method: str) -> None:
    tiny.edit_config(folder, quantization_config={"quant_method": method})
    tiny.refused(folder, f"quantised with {method} ({NAMES[method]})", "use a GPTQ, AWQ, bitsandbytes, MLX or")


@pytest.mark.parametrize("ending", ENDINGS)
def test_by_the_names_of_tensors(ending: str) -> None:
    with pytest.raises(ValueError, match=rf"{QUERY}.{ending}: quantised with {ENDINGS[ending]} \("):
        found({f"{QUERY}.{ending}": torch.zeros(4, dtype=torch.int16)})


def test_an_adapter_around_a_quantised_model(folder: Path) -> None:
    """What PEFT saves of it: the base's layer under another name, and the two matrices beside."""
    names = [f"{QUERY}.base_layer.weight", f"{QUERY}.lora_A.default.weight", f"{QUERY}.lora_B.default.weight"]
    exchange(folder, [f"{QUERY}.weight"], {name: torch.zeros(4, 4) for name in names})
    tiny.refused(folder, "merge the adapter first (peft: merge_and_unload)")
    exchange(folder, names[1:], {})
    tiny.refused(folder, "merge the adapter first (peft: merge_and_unload)")


def test_hqq() -> None:
    tiny.refused(shared("quant/hqq/w4-g64"), "HQQ (qmodel.pt), which is not read; give a GPTQ, AWQ or unquantised")
