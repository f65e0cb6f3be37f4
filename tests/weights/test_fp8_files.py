"""Checkpoints in block-scaled FP8 of which a part is otherwise: fused with plain tensors, left out, damaged, stacked,
of another type of factors, or in the older kind of file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import minillm
from minillm.weights import fp8
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.formats.packed import Made
from tests.helpers import tiny
from tests.helpers.blocks import SCALE, formula, quantise, read, write
from tests.helpers.tiny import refused
from tests.weights.formats import by_hand
from tests.weights.test_fp8 import (
    ODD,
    held,
    tokens,
)
from tests.weights.test_fp8 import pair as pair


@pytest.mark.parametrize("keep", [False, True])
@torch.no_grad()
def test_fused_parameters_of_both_kinds(
    pair: tuple[Path, Path], keep: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where one part of a parameter is fp8 and another is not, each stays what it is; where that is an expert's, all of
    the layer are dequantised, and a line says so."""
    (stored, config), (plain, plain_config) = map(read, pair)
    odd = {f"model.layers.1.{name}_proj.weight" for name in ("self_attn.k", "mlp.experts.3.up", "mlp.experts.0.down")}
    for name in odd & plain.keys():
        stored[name] = plain[name] = plain[name].bfloat16()
        del stored[name + SCALE]
    write(tmp_path / "fp8", stored, config)
    write(tmp_path / "plain", plain, plain_config)
    ours = minillm.load(tmp_path / "fp8", "float32", kernels="reference", keep_quantized=keep)
    expected = minillm.load(tmp_path / "plain", "float32", kernels="reference").model(tokens(1, 9))
    assert torch.equal(ours.model(tokens(1, 9)), expected)
    if keep:
        mixed = {"layers.1.ffn.experts.gate_up", "layers.1.ffn.experts.down"}
        before = held(minillm.load(pair[0], "float32", kernels="reference", keep_quantized=True))
        assert before - held(ours) == mixed & before
        count = sum(bool(re.match(r"model\.layers\.1\.mlp\.experts\.\d+\..*weight$", name)) for name in stored)
        note = f"{count - 2} matrices were dequantised, as their parameters cannot stay quantised: {count - 2} in FP8"
        assert note in capsys.readouterr().err
        qkv = "layers.1.attention.qkv.weight"
        parts = {name.removeprefix(qkv): each.dtype for name, each in ours.model.named_parameters() if qkv in name}
        if qkv in before:
            q, k = ours.spec.layers[1].attention.num_heads, ours.spec.layers[1].attention.num_kv_heads
            size = ours.spec.layers[1].attention.head_dim
            factors = {f"@{(q + k) * size}_scale": torch.float32, "_scale": torch.float32}
            values = {"": fp8.DTYPE, f"@{q * size}": torch.float32, f"@{(q + k) * size}": fp8.DTYPE}
            assert parts == values | factors


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("pair", ["deepseek_v3"], indirect=True)
@torch.no_grad()
def test_the_layer_that_predicts_further_tokens_is_left_out(
    pair: tuple[Path, Path], keep: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole layer after the last, with fp8 of its own, an embedding and a head, as DeepSeek-V3's 61: one note."""
    expected = minillm.load(pair[0], "float32", keep_quantized=keep).model(tokens(1, 9))
    stored, config = read(pair[0])
    hidden, extra = config["hidden_size"], f"model.layers.{config['num_hidden_layers']}."
    last = f"model.layers.{config['num_hidden_layers'] - 1}."
    further = {name.replace(last, extra): tensor.clone() for name, tensor in stored.items() if name.startswith(last)}
    for name in ("enorm", "hnorm", "shared_head.norm"):
        further[f"{extra}{name}.weight"] = torch.ones(hidden)
    for name in ("embed_tokens", "shared_head.head"):
        further[f"{extra}{name}.weight"] = torch.ones(config["vocab_size"], hidden)
    further[f"{extra}eh_proj.weight"] = torch.ones(hidden, 2 * hidden)
    write(tmp_path, {**stored, **further}, {**config, "num_nextn_predict_layers": 1})
    capsys.readouterr()
    assert torch.equal(minillm.load(tmp_path, "float32", keep_quantized=keep).model(tokens(1, 9)), expected)
    note = "layers of multi-token prediction, which generation does without"
    count = len([name for name in further if not name.endswith(SCALE)])  # matrices with their factors as one
    assert capsys.readouterr().err == f"minillm: {count} tensors left out: {note}\n"
    tiny.edit_config(tmp_path, num_nextn_predict_layers=0)
    refused(tmp_path, f"{count} tensors no rule claims", extra)


BAD = {
    "no factors": (lambda t: t.pop(ODD + SCALE), f"{ODD}{SCALE} is missing, without which {ODD} is no FP8"),
    "fewer factors": (lambda t: t.update({ODD + SCALE: t[ODD + SCALE][:, :1]}), f"{ODD}{SCALE} is [1, ", "128 x 128"),
    "factors of a plain matrix": (lambda t: t.update({ODD: t[ODD].float()}), f"{ODD} is F32, FP8 makes it F8_E4M3"),
    "factors of another type": (
        lambda t: t.update({ODD + SCALE: t[ODD + SCALE].to(torch.int32)}), f"{ODD}{SCALE} is I32, FP8 of"
    ),
    "factors of a norm": (
        lambda t: t.update({f"model.norm.weight{SCALE}": torch.ones(1, 1)}), "model.norm.weight is [", "is of matrices"
    ),
    "factors alone": (lambda t: t.update({f"model.x.weight{SCALE}": torch.ones(1, 1)}), "no rule claims: model.x.we"),
    "other factors too": (
        lambda t: t.update({f"{ODD}_scale": t[ODD + SCALE].clone()}), f"{ODD} is there twice, as FP8 and as FP8"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("pair", ["qwen3_moe"], indirect=True)
def test_bad_tensors(pair: tuple[Path, Path], case: str, tmp_path: Path) -> None:
    (stored, config), (damage, *words) = read(pair[0]), BAD[case]
    damage(stored)
    write(tmp_path / "bad", {name: each.contiguous() for name, each in stored.items()}, config)
    refused(tmp_path / "bad", *words)


@pytest.mark.parametrize("rows", [130, 128])
def test_stacked_experts(rows: int) -> None:
    """All in one tensor with the factors of each, `[E, O, I]`: in the form and dequantised."""
    matrices = [quantise(tiny_matrix, torch.float32) for tiny_matrix in torch.randn(3, rows, 200)]
    tensors = {"m.experts.up": torch.stack([w.view(torch.uint8) for w, _ in matrices]).view(fp8.DTYPE)}
    tensors[f"m.experts.up{SCALE}"] = torch.stack([scale for _, scale in matrices])
    packed = by_hand.found(tensors)["m.experts.up"]
    made = Made(packed, {part: by_hand.InMemory(tensors[name]) for part, name in packed.parts.items()})
    assert (made.shape, made.stacked) == ((3, rows, 200), True)
    for number, each in enumerate(matrices):
        one, expected = made.one(number), formula(*each).float()
        assert torch.equal(one.values().view(one.shape), expected)
        assert torch.equal(fp8.Fp8().values(one.fields(0, rows)), expected)
        assert torch.equal(made.values().view(made.shape)[number], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu])
@pytest.mark.parametrize("pair", ["qwen3_moe"], indirect=True)
def test_factors_that_are_powers_of_two_in_a_byte(pair: tuple[Path, Path], dtype: torch.dtype, tmp_path: Path) -> None:
    """E8M0: 2^(byte - 127). The byte 255 is no number, and refused."""
    (stored, config), (plain, plain_config) = map(read, pair)
    for name in [name for name in stored if name.endswith(SCALE)]:
        powers = torch.randint(110, 125, stored[name].shape, dtype=torch.uint8)
        stored[name], weight = powers.view(dtype), name.removesuffix(SCALE)
        plain[weight] = formula(stored[weight], 2.0 ** (powers.double() - 127)).float()
    write(tmp_path / "fp8", stored, config)
    write(tmp_path / "plain", plain, plain_config)
    expected = minillm.load(tmp_path / "plain", "float32", kernels="reference").model.state_dict()
    found = minillm.load(tmp_path / "fp8", "float32", kernels="reference", keep_quantized=False).model.state_dict()
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    stored[ODD + SCALE].view(torch.uint8)[0, 0] = 255
    write(tmp_path / "bad", stored, config)
    refused(tmp_path / "bad", f"{ODD}{SCALE} has values that no factor has")


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("pair", ["deepseek_v3"], indirect=True)
@torch.no_grad()
def test_fp8_where_it_cannot_stay(pair: tuple[Path, Path], keep: bool, tmp_path: Path) -> None:
    """A router or an embedding in FP8 is dequantised on load, whatever is asked for."""
    (stored, config), (plain, plain_config) = map(read, pair)
    odd = ["model.layers.1.mlp.gate.weight", "model.embed_tokens.weight"]
    for name in odd:
        stored[name], stored[name + SCALE] = quantise(plain[name], torch.float32)
        plain[name] = formula(stored[name], stored[name + SCALE]).float()
    write(tmp_path / "fp8", stored, config)
    write(tmp_path / "plain", plain, plain_config)
    ours = minillm.load(tmp_path / "fp8", "float32", kernels="reference", keep_quantized=keep)
    expected = minillm.load(tmp_path / "plain", "float32", kernels="reference").model(tokens(1, 9))
    assert torch.equal(ours.model(tokens(1, 9)), expected)


@torch.no_grad()
def test_the_older_file_format(pair: tuple[Path, Path], tmp_path: Path) -> None:
    stored, config = read(pair[0])
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(stored, tmp_path / "pytorch_model.bin")
    assert torch.equal(minillm.load(tmp_path).model(tokens(1, 9)), minillm.load(pair[0]).model(tokens(1, 9)))


def test_another_name_of_the_same_numbers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As MiniMax publishes it."""
    folder = Path(shutil.copytree(pair[0], tmp_path / "other"))
    section = {**json.loads((folder / "config.json").read_text())["quantization_config"], "fmt": "float8_e4m3fn"}
    tiny.edit_config(folder, quantization_config=section)
    ours, theirs = (minillm.load(each, "float32").model for each in (folder, pair[0]))
    with torch.no_grad():
        assert torch.equal(ours(tiny.tokens(60, 1, 9)), theirs(tiny.tokens(60, 1, 9)))


def test_the_dtype_is_that_of_the_other_tensors(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Where config.json does not say: FP8 is no type to compute in."""
    stored, config = read(pair[0])
    stored = {name: t if t.dtype == fp8.DTYPE or name.endswith(SCALE) else t.bfloat16() for name, t in stored.items()}
    write(tmp_path, stored, {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")})
    assert Checkpoint(tmp_path).dtype == torch.bfloat16
