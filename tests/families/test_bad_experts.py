"""Mixtures whose tensors are missing, too many or damaged: one error that names them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers import tiny
from tests.helpers.blocks import SCHEME
from tests.helpers.tiny import refused_by_command
from tests.test_cli import start

Tensors = dict[str, Tensor]
EXPERT = "model.layers.1.mlp.experts.3."
NORM = "model.layers.1.input_layernorm.weight"
DOWN, UP = f"{EXPERT}down_proj.weight", f"{EXPERT}up_proj.weight"  # of one block each
MIXTRAL = "model.layers.1.block_sparse_moe."


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda named: {name: tensor for name, tensor in named.items() if part not in name}


def copied(old: str, new: str) -> Callable[[Tensors], Tensors]:
    """Those tensors with `old` in their names a second time, as `new`."""
    return lambda named: named | {n.replace(old, new): t.clone() for n, t in named.items() if old in n}


def in_fp8(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> Callable[[Tensors], Tensors]:
    """DOWN in FP8, its factors of this shape."""
    return lambda named: {**named, DOWN: named[DOWN].to(dtype), f"{DOWN}_scale_inv": torch.ones(shape)}


# What is wrong: the family, what is done to its tensors, and what the error must say.
TENSORS: dict[str, tuple[Any, ...]] = {
    "an expert is missing": (
        "mixtral",
        without(f"{MIXTRAL}experts.3."),
        "3 parameters no tensor fills: layers.1.ffn.experts.gate_up[3.gate], layers.1.ffn.experts.gate_up[3.up], "
        "layers.1.ffn.experts.down[3]",
    ),
    "part of one is missing": ("deepseek_v3", without(UP), "no tensor fills: layers.1.ffn.experts.gate_up[3.up]"),
    "all are missing": (
        "deepseek_v3",
        without(".experts."),
        "48 parameters no tensor fills: layers.1.ffn.experts.gate_up[0.gate]",
        "and 42 more",
    ),
    "no router": ("mixtral", without(f"{MIXTRAL}gate"), "no tensor fills: layers.1.ffn.router.weight"),
    "no correction": ("deepseek_v3", without("2.mlp.gate.e_score"), "no tensor fills: layers.2.ffn.router.bias"),
    "an expert beyond the last": (
        "mixtral",
        copied(f"{MIXTRAL}experts.4.", f"{MIXTRAL}experts.5."),
        f"3 tensors no rule claims: {MIXTRAL}experts.5.w1.weight, {MIXTRAL}experts.5.w2.weight, "
        f"{MIXTRAL}experts.5.w3.weight",
    ),
    "an expert numbered twice": (
        "deepseek_v3",
        copied(EXPERT, EXPERT.replace("3", "03")),
        "3 tensors no rule claims: model.layers.1.mlp.experts.03.down_proj.weight",
    ),
    "two names for one matrix": (
        "deepseek_v3",
        copied("layers.1.self_attn.q_b_proj", "layers.1.self_attn.q_proj"),
        "1 tensors no rule claims: model.layers.1.self_attn.q_proj.weight",
    ),
    "another shape": (
        "deepseek_v3",
        lambda named: {**named, DOWN: torch.zeros(48, 19)},
        f"{DOWN} is [48, 19], the config needs [48, 20]",
    ),
    "more blocks": (
        "deepseek_v3",
        in_fp8(1, 2),
        f"{DOWN}_scale_inv is [1, 2], FP8 of [48, 20] in blocks of 128 x 128 makes it [1, 1]",
    ),
    "one factor": (
        "deepseek_v3",
        in_fp8(),
        f"{DOWN}_scale_inv is [], FP8 of [48, 20] in blocks of 128 x 128 makes it [1, 1]",
    ),
    "factors of rows": (
        "deepseek_v3",
        in_fp8(48, 1),
        f"{DOWN}_scale_inv is [48, 1], FP8 of [48, 20] in blocks of 128 x 128 makes it [1, 1]",
    ),
    "factors missing": (
        "deepseek_v3",
        lambda named: {**in_fp8(1, 1)(named), UP: named[UP].to(torch.float8_e4m3fn)},
        f"{UP}_scale_inv is missing, without which {UP} is no FP8",
    ),
    "all factors missing": (
        "deepseek_v3",
        lambda named: {**named, DOWN: named[DOWN].to(torch.float8_e4m3fn)},
        f"{DOWN} is F8_E4M3",
        "is it quantised?",
    ),
    "factors of a plain matrix": (
        "deepseek_v3",
        in_fp8(1, 1, dtype=torch.float32),
        f"{DOWN} is F32, FP8 makes it F8_E4M3",
    ),
    "factors of another FP8": (
        "deepseek_v3",
        in_fp8(1, 1, dtype=torch.float8_e5m2),
        f"{DOWN} is F8_E5M2, FP8 makes it F8_E4M3",
    ),
    "FP8 that is no matrix": (
        "deepseek_v3",
        lambda named: named | {NORM: named[NORM].to(torch.float8_e4m3fn), f"{NORM}_scale_inv": torch.ones(1)},
        f"{NORM} is [48], FP8 is of matrices",
    ),
    "factors that are no numbers": (
        "deepseek_v3",
        lambda named: in_fp8(1, 1)(named) | {f"{DOWN}_scale_inv": torch.ones(1, 1, dtype=torch.int32)},
        f"{DOWN}_scale_inv is I32, FP8 of [48, 20] in blocks of 128 x 128 makes it F64 or F32",
    ),
    "factors of factors": (
        "deepseek_v3",
        lambda named: in_fp8(1, 1)(named) | {f"{DOWN}_scale_inv_scale_inv": torch.ones(1, 1)},
        f"{DOWN}_scale_inv is F32, FP8 makes it F8_E4M3",
    ),
    "factors of nothing": (
        "deepseek_v3",
        lambda named: without(DOWN)(named) | {f"{DOWN}_scale_inv": torch.ones(1, 1)},
        f"1 tensors no rule claims: {DOWN}_scale_inv",
        "1 parameters no tensor fills: layers.1.ffn.experts.down[3]",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(mixtures: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused_by_command(damaged(mixtures, case, tmp_path), capsys, *TENSORS[case][2:])


def damaged(mixtures: Path, case: str, tmp_path: Path) -> Path:
    family, damage, *_ = TENSORS[case]
    folder = Path(shutil.copytree(mixtures / family, tmp_path / family))
    save_file(damage(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    tiny.edit_config(folder, quantization_config=SCHEME)
    return folder


@pytest.mark.parametrize("case", ["an expert is missing", "more blocks"])
def test_the_command_itself(mixtures: Path, case: str, tmp_path: Path) -> None:
    """As users run it: the one line and nothing else."""
    process = start("--weights", str(damaged(mixtures, case, tmp_path)), "--prompt-ids", "1")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.count(b"\n")) == (2, b"", 1)
    assert err.startswith(b"minillm: error: ")
    assert TENSORS[case][2].encode() in err


def test_an_expert_in_two_shards(mixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(mixtures / "mixtral", tmp_path / "mixtral"))
    named, twice = load_file(folder / "model.safetensors"), f"{MIXTRAL}experts.3.w1.weight"
    (folder / "model.safetensors").unlink()
    first, second = (f"model-0000{part}-of-00002.safetensors" for part in (1, 2))
    save_file(named, folder / first)
    save_file({twice: named[twice]}, folder / second)
    located = {**dict.fromkeys(named, first), twice: second}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": located}))
    refused_by_command(folder, capsys, f"tensor '{twice}' is in both {first} and {second}")
