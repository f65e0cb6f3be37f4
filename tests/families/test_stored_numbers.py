"""Numbers that a checkpoint stores and the model has by itself: another one is another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from tests.helpers import tiny

ACT = "model.layers.1.mlp.act_fn."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    tiny.save(folder, *tiny.ROWS["apertus"])
    return folder


def changed(saved: Path, folder: Path, tensor: str, value: torch.Tensor) -> Path:
    tensors = load_file(saved / "model.safetensors")
    assert f"{ACT}{tensor}" in tensors
    save_file({**tensors, f"{ACT}{tensor}": value}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((saved / "config.json").read_text())
    return folder


@pytest.mark.parametrize(
    ("tensor", "value", "said"),
    [
        ("beta", torch.tensor(0.501), "beta is 0.501, expected 0.5"),
        ("eps", torch.tensor([-2e-6]), "eps is -2e-06, expected -1e-06"),
        ("eps", torch.tensor(float("nan")), "eps is nan, expected -1e-06"),
        ("beta", torch.full((2,), 0.5), r"beta is F32 \[2\], expected one number, 0.5"),
        ("beta", torch.tensor(1), r"beta is I64 \[\], expected one number, 0.5"),
    ],
)
def test_another_number_is_refused(saved: Path, tmp_path: Path, tensor: str, value: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=f"do not fit config.json; 1 tensors with a number .*: {ACT}{said}; download"):
        minillm.load(changed(saved, tmp_path, tensor, value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_a_type_rounds_it(saved: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Also where what was rounded is stored wider again."""
    value = torch.tensor(-1e-6, dtype=dtype)
    for each in (value, value.float()):
        assert minillm.load(changed(saved, tmp_path, "eps", each)).model
