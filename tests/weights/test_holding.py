"""Matrices that stay quantised: in each format the numbers of the dequantised ones, wherever in a parameter."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm import config
from minillm.llm import LLM
from minillm.model.held import held_in
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.formats.packed import Made
from minillm.weights.forms import Plain
from minillm.weights.fp8 import Fp8
from minillm.weights.gguf.tensors import Blocks, InBlocks
from minillm.weights.grouped import Grouped
from tests.conftest import SHARED, shared
from tests.helpers import tiny
from tests.helpers.values import values
from tests.weights.formats.by_hand import InMemory, drawn, found, integers, rows

EXACT = 2e-5  # as in test_laws.py: fp32, the same sums in another order
FIXTURES = [
    f"{path.parent.parent.name}/{path.parent.name}"
    for path in sorted((SHARED / "quant").glob("*/*/expected"))
    if path.parent.parent.name not in ("hqq", "gguf")
]
# In fp32 numbers: a product has room for one factor of a group and one of a row, so that a factor is divided by 127, or
# 1 by what divides the whole matrix, before it is multiplied: one rounding more, which can become two numbers.
APART = {"bitsandbytes/int8": 1, "compressed-tensors/nvfp4": 2}
WITHOUT = {"torchao/float8-wo"}  # rounded to bf16, which the form of FP8 does not know
GGUF = [path.parent.name for path in sorted((SHARED / "quant/gguf").glob("*/expected"))]


def ulps(a: Tensor, b: Tensor) -> int:
    """How many fp32 numbers lie between the two at most."""
    assert torch.equal(a == 0, b == 0)
    ordered = [each.view(torch.int32).long().where(each >= 0, -(each.view(torch.int32) & 0x7FFFFFFF).long())
               for each in (a.contiguous(), b.contiguous())]  # fmt: skip
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.mark.parametrize("name", FIXTURES)
def test_forms_have_the_numbers_of_their_formats(name: str) -> None:
    """All rows, and some that begin anywhere."""
    folder, count = shared(f"quant/{name}"), 0
    checkpoint = Checkpoint(folder, config.section(folder, config.read(folder)))
    for tensor, made in checkpoint.stored.items():
        if not isinstance(made, Made):
            continue
        assert (made.form is None) == (name in WITHOUT), tensor
        if made.form is None:
            continue
        expected = made.values().view(made.shape)
        expected = expected if made.order is None else expected[:, made.order]
        got = made.form.values(made.fields(0, made.shape[0]))
        assert ulps(got, expected) <= APART.get(name, 0), tensor
        assert torch.equal(made.form.values(made.fields(7, 40)), got[7:40]), tensor
        count += 1
    assert count >= 14 or name in WITHOUT


@pytest.mark.parametrize("name", GGUF)
def test_forms_have_the_numbers_of_their_blocks(name: str) -> None:
    (file,) = shared(f"quant/gguf/{name}").glob("*.gguf")
    made = [each for each in Checkpoint(file).stored.values() if isinstance(each, InBlocks) and each.form is not None]
    for each in made:
        assert torch.equal(each.form.values(each.fields(0, each.shape[0])), each.values().view(each.shape))
    assert made or name.endswith("F16")


@pytest.mark.parametrize("name", [*FIXTURES, *(f"gguf/{name}" for name in GGUF)])
@torch.no_grad()
def test_held_models_compute_what_dequantised_ones_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parameters, rows that a layout permutes included, and the same logits; where all can stay, nothing is
    dequantised whole on the way."""
    folder = shared(f"quant/{name}")
    place = next(folder.glob("*.gguf"), folder)
    plain = minillm.load(place, "float32", keep_quantized=False)
    if name not in WITHOUT and "deepseek" not in name:  # whose keys and values of latent attention are plain
        monkeypatch.setattr(Made, "_read", None)
    held = minillm.load(place, "float32")
    assert held_any(held) or name in WITHOUT or name.endswith(("F16", "BF16"))
    expected, got = values(plain.model), values(held.model)
    assert got.keys() == expected.keys()
    for parameter, numbers in expected.items():
        assert ulps(got[parameter], numbers) <= APART.get(name, 0), parameter
    tokens = load_file(folder / "expected/outputs.safetensors")["tokens"][None].long()
    logits = plain.model(tokens)
    assert (held.model(tokens) - logits).abs().max() <= EXACT * max(1.0, logits.abs().max())


def held_any(llm: LLM) -> bool:
    return any(held_in(module) for module in llm.model.modules())


def gptq(shape: tuple[int, int], group: int, order: bool, seed: int) -> dict[str, Tensor]:
    """A matrix of 4 bits by the endings of its tensors; its groups lie anywhere in `order`."""
    high, wide = shape
    q, z = integers(0, 16, (wide, high), seed), integers(1, 15, (wide // group, high), seed + 1)
    g_idx = torch.arange(wide, dtype=torch.int32) // group
    return {
        "qweight": rows(q.t(), 4).t().contiguous(),
        "qzeros": rows(z, 4),
        "scales": (integers(1, 9, z.shape, seed + 2) / 256).half(),
        "g_idx": g_idx[torch.randperm(wide, generator=drawn(seed))] if order else g_idx,
    }


SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8}
Q, K, V = (f"model.layers.1.self_attn.{each}_proj." for each in "qkv")
QKV = "layers.1.attention.qkv"


def exchanged(folder: Path, parts: dict[str, dict[str, Tensor]], section: dict[str, Any]) -> None:
    """Put quantised matrices, by the beginning of their names, in the place of plain ones."""
    tensors = load_file(folder / "model.safetensors")
    for module, each in parts.items():
        del tensors[f"{module}weight"]
        tensors |= {f"{module}{ending}": part for ending, part in each.items()}
    save_file(tensors, folder / "model.safetensors")
    tiny.edit_config(folder, quantization_config=section)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.save(folder, "llama", SIZES)
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "made"))


@torch.no_grad()
def same(folder: Path, kernels: str = "auto") -> LLM:
    """Loads a folder held, after it was compared with what it is dequantised."""
    plain = minillm.load(folder, "float32", kernels=kernels, keep_quantized=False)
    held = minillm.load(folder, "float32", kernels=kernels)
    expected = values(plain.model)
    assert all(torch.equal(got, expected[name]) for name, got in values(held.model).items())
    tokens = tiny.tokens(plain.spec.vocab_size, 2, 11)
    assert (held.model(tokens) - plain.model(tokens)).abs().max() <= EXACT
    assert (held.model(tokens[:, :1]) - plain.model(tokens[:, :1])).abs().max() <= EXACT
    return held


def segments(llm: LLM, name: str = QKV) -> list[tuple[int, int, type, bool]]:
    return [(each.start, each.rows, type(each.form), each.ordered)
            for each in held_in(llm.model.get_submodule(name))["weight"].segments]  # fmt: skip


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_inputs_in_orders_of_their_own(folder: Path, kernels: str) -> None:
    """Fused q, k and v, each with its own order and zeros: three products, each of inputs in its order."""
    parts = {name: gptq((64 if name == Q else 16, 64), 16, True, seed) for seed, name in enumerate((Q, K, V))}
    exchanged(folder, parts, {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True})
    assert segments(same(folder, kernels)) == [(0, 64, Grouped, True), (64, 16, Grouped, True), (80, 16, Grouped, True)]


def test_groups_of_other_sizes_have_no_order(folder: Path) -> None:
    """Of inputs that no order brings into groups of one size: dequantised, as a line says."""
    odd = gptq((64, 64), 16, False, 1)
    odd["g_idx"] = torch.tensor([0] * 20 + [1] * 12 + [2] * 16 + [3] * 16, dtype=torch.int32)
    exchanged(folder, {Q: odd}, {"quant_method": "gptq", "bits": 4, "desc_act": True})
    assert not held_any(same(folder))


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_forms_beside_each_other(folder: Path, kernels: str) -> None:
    """In one parameter integers, plain numbers and FP8, in the order of the rows."""
    values = (integers(-200, 201, (16, 64), 3) / 8).to(torch.float8_e4m3fn)
    fp8 = {"weight": values, "weight_scale": torch.tensor([0.0078125])}
    exchanged(folder, {Q: gptq((64, 64), 16, False, 1), V: fp8}, {})
    expected = [(0, 64, Grouped, False), (64, 16, Plain, False), (80, 16, Fp8, False)]
    assert segments(same(folder, kernels)) == expected


def test_rows_that_fill_no_tile(base: Path, tmp_path: Path) -> None:
    """Tiles are of 16 rows: v begins one of its own where k ends within one; without tiles all are together."""
    tiny.save(tmp_path / "made", "llama", {**SIZES, "num_key_value_heads": 1})
    parts = {name: gptq((64 if name == Q else 8, 64), 16, False, seed) for seed, name in enumerate((Q, K, V))}
    exchanged(tmp_path / "made", parts, {"quant_method": "gptq", "bits": 4, "group_size": 16})
    assert segments(same(tmp_path / "made", "reference")) == [(0, 80, Grouped, False)]
    held = same(tmp_path / "made")
    assert held.model.ops.tile == 16
    assert segments(held) == [(0, 72, Grouped, False), (72, 8, Grouped, False)]


def nf4(shape: tuple[int, int], block: int, seed: int) -> dict[str, Tensor]:
    count = math.prod(shape)
    state = f'{{"quant_type": "nf4", "blocksize": {block}, "dtype": "float32", "shape": {list(shape)}}}'
    return {
        "weight": integers(0, 256, (count // 2, 1), seed).to(torch.uint8),
        "weight.absmax": torch.rand(-(-count // block), generator=drawn(seed)) / 8,
        "weight.quant_map": torch.linspace(-1, 1, 16),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }


@pytest.mark.parametrize(("block", "stays"), [(32, True), (64, True), (128, False), (48, False)])
def test_blocks_across_rows(folder: Path, block: int, stays: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """NF4 counts its blocks through the whole matrix; where one goes on in the next row it cannot stay so."""
    exchanged(folder, {Q: nf4((64, 64), block, 5)}, {"quant_method": "bitsandbytes"})
    held = same(folder)
    note = "1 matrices were dequantised, as their parameters cannot stay quantised: 1 in bitsandbytes nf4"
    assert (held_any(held), note in capsys.readouterr().err) == (stays, not stays)


EXPERTS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
EXPERTS |= {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize("change", ["none", "other groups", "an order", "a plain one"])
def test_experts(change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of a layer lie in one form, or are dequantised: between their rows no others can lie."""
    tiny.save(tmp_path / "made", "qwen3_moe", EXPERTS)
    parts = {}
    for e in range(4):
        for number, each in enumerate(("gate", "up", "down")):
            shape = (64, 32) if each == "down" else (32, 64)
            parts[f"model.layers.1.mlp.experts.{e}.{each}_proj."] = gptq(shape, 16, False, 10 * e + number)
    odd = "model.layers.1.mlp.experts.2.up_proj."
    if change == "a plain one":
        del parts[odd]
    elif change != "none":
        parts[odd] = gptq((32, 64), 32 if change == "other groups" else 16, change == "an order", 99)
    exchanged(tmp_path / "made", parts, {"quant_method": "gptq", "bits": 4})
    experts = held_in(same(tmp_path / "made").model.layers[1].ffn.experts)
    assert set(experts) == ({"gate_up", "down"} if change == "none" else {"down"})
    count = 8 - (change == "a plain one")
    assert (f"{count} matrices were dequantised" in capsys.readouterr().err) == (change != "none")


def test_stacks_of_mlx() -> None:
    """A tensor with the matrices of all experts gives each by itself."""
    q, scales = integers(0, 16, (3 * 8, 64), 1), (integers(1, 9, (3, 8, 2), 2) / 64).half()
    words = rows(q, 4, torch.uint32).view(torch.int32).view(3, 8, 8).view(torch.uint32)
    tensors = {"model.m.weight": words, "model.m.scales": scales, "model.m.biases": -3 * scales}
    packed = found(tensors, {"bits": 4, "group_size": 32})["model.m.weight"]
    made = Made(packed, {part: InMemory(tensors[name]) for part, name in packed.parts.items()})
    expected = made.values().view(3, 8, 64)
    for e in range(3):
        one = made.one(e)
        assert torch.equal(one.values().view(8, 64), expected[e])
        assert torch.equal(one.form.values(one.fields(0, 8)), expected[e])


def test_what_is_dequantised_each_time_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = shared("quant/gguf/story-qwen-256-Q2_K").glob("*.gguf")
    held = minillm.load(file, "float32")
    count = sum(
        isinstance(each.form, Blocks)
        for module in held.model.modules() for held_ in held_in(module).values() for each in held_.segments
    )  # fmt: skip
    assert count
    said = capsys.readouterr().err
    assert said.count("stay as they are stored, and are dequantised each time they are used: ") == 1
    assert " in Q2_K" in said
