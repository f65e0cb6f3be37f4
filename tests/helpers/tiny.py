"""Tiny transformers models with every parameter and buffer random, saved to disk in the published layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import minillm
from minillm import generate
from tests.helpers import compressed_cases, oracles
from tests.helpers.rows import BASE as BASE
from tests.helpers.rows import ROWS as ROWS


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter: matrices so that activations keep their size, norms around one, biases well away from zero;
    and the buffers that a checkpoint holds."""
    generator = torch.Generator().manual_seed(seed)
    stored = ("e_score_correction_bias", "layer_scalar", "expert_bias")
    corrections = [buffer for name, buffer in model.named_buffers() if name.endswith(stored)]
    for parameter in [*model.parameters(), *corrections]:
        noise = torch.randn(parameter.shape, generator=generator)
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
        is_norm = parameter.dim() == 1 and bool((parameter == 1).all())
        parameter.data.copy_(noise * scale + (1.0 if is_norm else 0.0))
    compressed_cases.random_tables(model, generator)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):  # a state that lasts: transformers sums the decays of 64 positions in fp32
            parameter.data.sub_(2.0)
        if "adapter_list" in name:  # a change is small beside what it changes
            parameter.data.mul_(0.5)
    for module in model.modules():
        if getattr(module, "scaling", None) == 1.0 and hasattr(module, "q_norm"):
            # The norm has learned to keep scores small: softmax of larger ones is a step.
            module.q_norm.weight.data.mul_(module.head_dim**-0.5)


def save(folder: Path, family: str, overrides: dict[str, Any], seed: int = 0) -> Any:
    """Build, randomise and save a model; returns it, fp32 and eager, as `reference` reads it from the folder."""
    model = oracles.build(family, {**BASE, **overrides}).eval()
    randomise(model, seed)
    oracles.save(model, folder, family)
    return model


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return oracles.load(folder, dtype)


def edit_config(folder: Path, **changes: Any) -> None:
    """Overwrite keys of a saved config.json; a value of ... removes the key."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def changed(folder: Path, tmp_path: Path, **values: Any) -> Path:
    """A copy of a folder's config.json with other values."""
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    edit_config(tmp_path, **values)
    return tmp_path


def tokens(vocab_size: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, tokens_BT: Tensor) -> Tensor:
    """The fp32 logits of a transformers model."""
    return model(tokens_BT).logits.float()


def refused(folder: Path, *messages: str) -> None:
    """Loading a folder fails with one error that says all of this."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        minillm.load(folder)
    for message in messages:
        assert message in str(caught.value)


def refused_by_command(folder: Path, capsys: pytest.CaptureFixture[str], *messages: str) -> None:
    """`load` fails so, and the command line says it in one line and exits with 2."""
    refused(folder, *messages)
    capsys.readouterr()
    assert generate.main(["--weights", str(folder), "--prompt-ids", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minillm: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for message in messages:
        assert message in err
