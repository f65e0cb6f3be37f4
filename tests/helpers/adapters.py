"""Adapters that PEFT makes of tiny models, every parameter of them random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from tests.helpers import tiny


def made(folder: Path, row: str, **options: Any) -> tuple[Any, Path]:
    """A model of PEFT's on a tiny one that is saved in `folder`, and the adapter's folder within."""
    theirs = tiny.save(folder, *tiny.ROWS[row])
    options = {"r": 4, "lora_alpha": 10, "task_type": "CAUSAL_LM", **options}
    model = peft.get_peft_model(theirs, peft.LoraConfig(**options))
    randomise(model)
    adapter = folder / "adapter"
    model.save_pretrained(adapter)
    return model, adapter


def randomise(model: Any) -> None:
    """All that is trained, in amounts that change what a model says."""
    draw = torch.Generator().manual_seed(5)
    for name, each in model.named_parameters():
        if each.requires_grad:
            noise = torch.randn(each.shape, generator=draw)
            size = 0.1 if "magnitude" in name or each.dim() == 1 else 0.3 * each.shape[-1] ** -0.5
            each.data.add_(noise * size)


def gradients(model: Any) -> dict[str, Tensor]:
    """Of what is trained, by the names in the file."""
    return {
        name.removeprefix("base_model.model.")
        .replace(".default", "")
        .replace(".modules_to_save", "")
        .replace("magnitude_vector.weight", "magnitude_vector"): each.grad
        for name, each in model.named_parameters()
        if each.requires_grad
    }


def randomise_ours(adapter: Any) -> None:
    """As `randomise`."""
    draw = torch.Generator().manual_seed(6)
    for name, each in adapter.named().items():
        size = 0.1 if "magnitude" in name or each.dim() == 1 else 0.3 * each.shape[-1] ** -0.5
        each.data.add_(torch.randn(each.shape, generator=draw) * size)
