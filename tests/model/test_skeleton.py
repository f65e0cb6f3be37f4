"""A model without memory: in the dtype that was asked for, whatever PyTorch's default is, which stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import minillm
from minillm import config, families
from minillm.model.decoder import skeleton
from minillm.model.moe import Router


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(mixtures: Path, dtype: torch.dtype, default: torch.dtype) -> None:
    """Routers are fp32 in all of them."""
    spec, _, _ = families.resolve(config.read(mixtures / "deepseek_v3"))
    torch.set_default_dtype(default)
    try:
        model = skeleton(spec, dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    routers = {id(each) for module in model.modules() if isinstance(module, Router) for each in module.parameters()}
    assert routers
    for name, each in model.named_parameters():
        assert each.device.type == "meta"
        assert each.dtype == (torch.float32 if id(each) in routers else dtype), name


def test_a_load_leaves_the_default_dtype_alone(mixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of every thread: tensors that others make meanwhile would have it."""

    def refuse(dtype: torch.dtype) -> None:
        raise AssertionError(f"the default dtype of all threads was set to {dtype}")

    monkeypatch.setattr(torch, "set_default_dtype", refuse)
    for options in ({}, {"quantize": "int8"}):
        model = minillm.load(mixtures / "mixtral", "bfloat16", kernels="reference", **options).model
        assert model.norm.weight.dtype == torch.bfloat16
        assert model.layers[0].ffn.router.weight.dtype == torch.float32
