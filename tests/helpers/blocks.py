"""Block-scaled FP8 from its definition: what the bytes mean in fp64, and checkpoints written as they are published."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm.weights import fp8

BLOCK = 128
SCALE = "_scale_inv"
SCHEME = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def value(byte: int) -> float:
    """e4m3: a sign, four bits of exponent with bias 7, three of fraction; no infinity, all ones is NaN."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    if (exponent, fraction) == (15, 7):
        return float("nan")
    return (-1.0) ** (byte >> 7) * (2.0 ** (exponent - 7) * (1 + fraction / 8) if exponent else 2.0**-6 * fraction / 8)


VALUES = torch.tensor([value(byte) for byte in range(256)], dtype=torch.float64)


def formula(weight: Tensor, scale: Tensor) -> Tensor:
    """fp8[m, n] * scale[m // 128, n // 128] in fp64, in which a product of 4 by 24 significant bits is exact."""
    m, n = (torch.arange(size) // BLOCK for size in weight.shape)
    return VALUES[weight.view(torch.uint8).long()] * scale.double()[m[:, None], n]


def quantise(weight: Tensor, factors: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest value of each block becomes 448, the largest of e4m3."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    stored, scale = torch.empty(weight.shape, dtype=fp8.DTYPE), torch.empty(rows, columns, dtype=factors)
    for i, j in product(range(rows), range(columns)):
        block = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
        scale[i, j] = weight[block].abs().max() / 448
        stored[block] = (weight[block] / scale[i, j].float()).clamp(-448, 448).to(fp8.DTYPE)
    return stored, scale


def write(folder: Path, tensors: dict[str, Tensor], config: dict) -> None:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def read(folder: Path) -> tuple[dict[str, Tensor], dict]:
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
