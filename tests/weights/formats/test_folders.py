"""Folders whose matrices are each in another format: what is loaded is what a plain folder of the same values gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm import config
from minillm.model.held import holdable
from minillm.plan.budget import Question, budget
from minillm.report.examine import explain
from tests.conftest import shared
from tests.helpers import tiny
from tests.helpers.tiny import refused
from tests.helpers.values import values
from tests.weights.formats.by_hand import integers, rows

SIZES = {"hidden_size": 96, "intermediate_size": 64, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "phi3": SIZES,  # q, k and v lie in one matrix of the file, and so do gate and up
    "qwen3_moe": {**SIZES, "moe_intermediate_size": 32, "num_experts": 5, "num_experts_per_tok": 2},
}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
SECTION = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {
    f"group_{number}": {"targets": ["re:.*"], "weights": weights} for number, weights in enumerate((
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": False},
        {"num_bits": 8, "type": "int", "strategy": "channel"},
        {"num_bits": 8, "type": "float", "strategy": "tensor"},
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    ))}}  # fmt: skip
KINDS = ("packed", "int8", "fp8", "nvfp4")


def held(kind: str, shape: tuple[int, int], seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Parts by their endings, and the matrix that they hold."""
    high, wide = shape
    groups = wide // 16
    if kind == "packed":
        q, z = integers(0, 16, shape, seed), integers(0, 16, (high, groups), seed + 1)
        scale = (integers(1, 9, (high, groups), seed + 2) / 256).bfloat16()
        zeros = rows(z.t(), 4).t().contiguous()
        parts = {"weight_packed": rows(q, 4), "weight_scale": scale, "weight_zero_point": zeros}
        matrix = (q - z.repeat_interleave(16, 1)) * scale.float().repeat_interleave(16, 1)
        return {**parts, "weight_shape": torch.tensor(shape)}, matrix
    if kind == "int8":
        q, scale = integers(-127, 128, shape, seed), (integers(1, 9, (high, 1), seed + 1) / 4096).bfloat16()
        return {"weight": q.to(torch.int8), "weight_scale": scale}, q * scale.float()
    if kind == "fp8":
        values = (integers(-200, 201, shape, seed) / 8).to(torch.float8_e4m3fn)
        parts = {"weight": values, "weight_scale": torch.tensor([0.0078125]), "input_scale": torch.ones(1)}
        return parts, values.float() * 0.0078125
    codes = integers(0, 16, shape, seed)
    scale = integers(1, 9, (high, groups), seed + 1).to(torch.float8_e4m3fn)
    packed = (codes[:, ::2] + 16 * codes[:, 1::2]).to(torch.uint8)
    parts = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": torch.tensor([64.0])}
    return parts, E2M1[codes] * (scale.float() / 64).repeat_interleave(16, 1)


@pytest.fixture(scope="module", params=FAMILIES)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A quantised folder and a plain one; not to be changed."""
    folder = tmp_path_factory.mktemp("folders")
    plain, quantised = folder / "plain", folder / "quantised"
    tiny.save(plain, request.param, FAMILIES[request.param])
    shutil.copytree(plain, quantised)
    tensors = load_file(plain / "model.safetensors")
    made = dict(tensors)
    matrices = [name for name, each in tensors.items() if ".layers." in name and each.dim() == 2]
    for number, name in enumerate(sorted(name for name in matrices if not name.endswith("mlp.gate.weight"))):
        del made[name]
        parts, tensors[name] = held(KINDS[number % len(KINDS)], tuple(tensors[name].shape), number)
        made |= {name.removesuffix("weight") + ending: part for ending, part in parts.items()}
    made["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(tensors, plain / "model.safetensors")
    save_file(made, quantised / "model.safetensors")
    tiny.edit_config(quantised, quantization_config=SECTION)
    return quantised, plain


def test_parameters_are_those_of_the_plain_folder(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, plain = (minillm.load(folder, "float32", keep_quantized=False).model.state_dict() for folder in folders)
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert capsys.readouterr().err.count("they quantise activations, which stay as they are") == 1


@torch.no_grad()
def test_matrices_stay_as_they_are(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Each in its form, several in a fused parameter, with the numbers of the plain folder and its logits; only experts
    of which others are in another form do not."""
    ours, plain = (minillm.load(folder, "float32").model for folder in folders)
    expected, found = dict(plain.named_parameters()), values(ours)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    lying = dict(ours.named_parameters())
    plainly = {name for name in holdable(plain) if name in lying and lying[name].dtype == torch.float32}
    mixed = {name for name in expected if ".experts." in name}
    assert {name for name in plainly if name.startswith("layers.")} == mixed
    assert ("matrices were dequantised" in capsys.readouterr().err) == bool(mixed)
    tokens = tiny.tokens(97, 2, 11)
    assert (ours(tokens) - plain(tokens)).abs().max() <= 2e-5


def test_all_tensors_are_claimed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """By headers, and by the names of an index whose files are not there."""
    folder, _ = folders
    shutil.copy(folder / "config.json", tmp_path)
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    for place in (folder, tmp_path):
        report = explain(place)
        assert report["unclaimed_tensors"] == report["unfilled_parameters"] == []
    assert explain(folder)["misshapen_tensors"] == explain(folder)["other_faults"] == []


@pytest.mark.parametrize(
    ("kind", "lacking", "message"),
    [
        ("packed", "weight_scale", "weight_packed"),
        ("packed", "weight_shape", "weight_packed"),
        ("packed", "weight_packed", "weight_scale"),
        ("int8", "weight_scale", "is I8"),
        ("fp8", "weight_scale", "is F8_E4M3"),
        ("nvfp4", "weight_global_scale", "weight_packed"),
        ("nvfp4", "weight_scale", "weight_packed"),
    ],
)
def test_a_matrix_that_lacks_a_part(folder: Path, kind: str, lacking: str, message: str) -> None:
    name = "model.layers.1.mlp.down_proj."
    tensors = load_file(folder / "model.safetensors")
    parts, _ = held(kind, tuple(tensors.pop(f"{name}weight").shape), 0)
    tensors |= {f"{name}{ending}": part for ending, part in parts.items() if ending != lacking}
    save_file(tensors, folder / "model.safetensors")
    tiny.edit_config(folder, quantization_config=SECTION)
    refused(folder, name, message)


def test_a_matrix_that_is_plain_too(folder: Path) -> None:
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.down_proj."
    parts, _ = held("packed", tuple(tensors[f"{name}weight"].shape), 0)
    save_file(tensors | {f"{name}{ending}": part for ending, part in parts.items()}, folder / "model.safetensors")
    refused(folder, f"{name}weight is there twice, as packed integers and as a plain tensor")


FP8 = {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}


@pytest.mark.parametrize(
    ("changes", "beside", "said"),
    [
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}, None, "fp8"),
        ({"quantization_config": FP8}, None, "FP8"),
        ({}, {"producer": {"name": "modelopt"}, "quantization": FP8}, "FP8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, None, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "modelopt", **FP8}}, {"quantization": FP8}, "modelopt"),
    ],
    ids=["fp8", "no method", "beside config.json", "an older key", "both"],
)
def test_wherever_it_is_said(
    folder: Path, changes: dict[str, Any], beside: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published ways to say that matrices are FP8, and none leaves a warning."""
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.down_proj.weight"
    parts, expected = held("fp8", tuple(tensors[name].shape), 0)
    tensors |= {f"{name.removesuffix('weight')}{ending}": part for ending, part in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    tiny.edit_config(folder, **changes)
    if beside:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    assert config.quantization(config.read(folder)) == said
    assert torch.equal(values(minillm.load(folder, dtype="float32").model)["layers.1.ffn.down.weight"], expected)
    assert "not understood" not in capsys.readouterr().err


def test_a_folder_that_is_not_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.edit_config(folder, quantization_config={"quant_method": "compressed-tensors", "format": "pack-quantized"})
    minillm.load(folder)
    assert "says compressed-tensors, but no tensor is: the weights are read as they are" in capsys.readouterr().err


# What reconstructed/fbgemm-fp8 says of its plain tensors is not so: its config.json has float32, its files bfloat16.
@pytest.mark.parametrize("tool", ["compressed-tensors", "modelopt"])
def test_sizes_by_the_config(tool: str) -> None:
    """To the byte what the files of the tools take."""
    folders = sorted(each for each in shared(f"quant/{tool}").iterdir() if (each / "config.json").is_file())
    assert folders
    for folder in folders:
        made = budget(folder, Question())["checkpoint"]
        assert (made["source"], made["notes"], made["readable"]) == ("files", [], True), folder
        assert (made["difference_bytes"], made["outside"], made["absent_tensors"]) == (0, None, 0), folder
        alone = budget(folder / "config.json", Question())["checkpoint"]
        assert alone["bytes"] == made["bytes"], folder


@pytest.mark.parametrize(
    ("listed", "spares"),
    [
        ("re:.*o_proj$", True),
        ("re:.*self_attn\\.(o|no)_proj.*", True),
        ("re:.*mlp\\.(gate|up|gate_up|down)_proj.*", False),
        ("re:^model\\.layers\\.[0-9]", None),
        ("re:.*(o|no)?_proj", None),
        ("re:" + 40 * "(o|no)", None),
        ("re:model\\.layers\\..*mlp", False),
    ],
)
def test_lists_of_plain_modules_by_regular_expressions(folder: Path, listed: str, spares: bool | None) -> None:
    """Simple ones; others leave the size open, and are never run."""
    sizes = []
    for ignore in ([listed], ["o_proj"]):
        section = {**SECTION, "format": "int-quantized", "config_groups": {"a": SECTION["config_groups"]["group_1"]}}
        tiny.edit_config(folder, quantization_config={**section, "ignore": ignore})
        sizes.append(budget(folder / "config.json", Question())["checkpoint"])
    if spares is None:
        assert sizes[0]["bytes"] is None
        assert "which of its tensors are plain is not known" in sizes[0]["notes"][0]
    else:
        assert (sizes[0]["bytes"] == sizes[1]["bytes"]) == spares
