"""MXFP4 (OCP Microscaling Formats v1.0): dequantised as the formula says, and as transformers does."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm import quantize
from minillm.config import read
from minillm.families import resolve
from minillm.model.held import held_in, matrix
from minillm.weights import ints
from minillm.weights.formats import mx
from tests.conftest import shared
from tests.helpers import tiny
from tests.helpers.oracles import EAGER, played, recorded

CONFIG = {
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
}
UP, DOWN = (f"model.layers.1.mlp.experts.{name}_proj" for name in ("gate_up", "down"))


def value(nibble: int) -> float:
    """e2m1: a sign, two bits of exponent with bias 1, one of fraction; no infinity, no NaN."""
    exponent, fraction = nibble >> 1 & 3, nibble & 1
    return (-1.0) ** (nibble >> 3) * (2.0 ** (exponent - 1) * (1 + fraction / 2) if exponent else fraction / 2)


def formula(blocks: Tensor, scales: Tensor) -> Tensor:
    """In fp64, in which every product is exact."""
    values = torch.tensor([value(nibble) for nibble in range(16)], dtype=torch.float64)
    powers = torch.tensor([2.0 ** (s - 127) for s in range(255)] + [math.nan], dtype=torch.float64)
    pairs = torch.stack((values[(blocks % 16).long()], values[(blocks // 16).long()]), dim=-1)
    return (pairs.flatten(-2) * powers[scales.long()][..., None]).flatten(-2)


def drawn(*shape: int, low: int = 120, high: int = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random bytes for a tensor of this shape, its factors from 2^(low - 127) on."""
    made = torch.Generator().manual_seed(seed)
    rows, groups = shape[:-1], shape[-1] // 32
    blocks = torch.randint(256, (*rows, groups, 16), generator=made, dtype=torch.uint8)
    return blocks, torch.randint(low, high, (*rows, groups), generator=made, dtype=torch.uint8)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3), st.integers(0, 99))
def test_dequantised_is_the_formula(experts: int, rows: int, groups: int, seed: int) -> None:
    blocks, scales = drawn(experts, rows, 32 * groups, low=0, high=253, seed=seed)
    expected = formula(blocks, scales)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = mx.dequantise({"_blocks": blocks, "_scales": scales}, "x").to(dtype)
        assert torch.equal(found, expected.float().to(dtype))


def test_every_byte() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 1, 16)
    parts = {"_blocks": blocks, "_scales": torch.full((16, 1), 130, dtype=torch.uint8)}
    for found in (mx.dequantise(parts, "x"), mx.FORMS[mx.FP4].values(mx.fields(parts, "x"))):
        assert torch.equal(found, formula(*parts.values()).float())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in MXFP4 as it is published, and one with the same numbers; not to be changed."""
    plain = tmp_path_factory.mktemp("plain")
    tiny.save(plain, "gpt_oss", CONFIG)
    named, packed = load_file(plain / "model.safetensors"), dict[str, Tensor]()
    for name in list(named):
        if name.endswith(("gate_up_proj", "down_proj")):
            blocks, scales = drawn(*named[name].mT.shape, seed=len(packed))
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, scales
            named[name] = formula(blocks, scales).float().mT.contiguous()
        else:
            packed[name] = named[name]
    save_file(named, plain / "model.safetensors", metadata={"format": "pt"})
    stored = Path(shutil.copytree(plain, tmp_path_factory.mktemp("mxfp4") / "mxfp4"))
    save_file(packed, stored / "model.safetensors", metadata={"format": "pt"})
    tiny.edit_config(stored, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": []})
    return stored, plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_load_dequantises(pair: tuple[Path, Path], dtype: str) -> None:
    """The very parameters: every product is exact in either type."""
    stored, plain = (
        dict(minillm.load(each, dtype, kernels="reference", keep_quantized=False).model.named_parameters())
        for each in pair
    )
    assert stored.keys() == plain.keys()
    for name, parameter in stored.items():
        assert torch.equal(parameter, plain[name]), name


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@torch.no_grad()
def test_experts_stay_so(pair: tuple[Path, Path], kernels: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In 4.5 bits for a value, in the parameter's order of rows, and the model computes the same."""
    stored, plain = (minillm.load(each, "float32", kernels=kernels) for each in pair)
    assert capsys.readouterr().err == ""
    experts, expected = stored.model.layers[1].ffn.experts, plain.model.layers[1].ffn.experts
    for leaf in ("gate_up", "down"):
        (segment,) = held_in(experts)[leaf].segments
        assert segment.form == replace(mx.FORMS[mx.FP4], tile=stored.model.ops.tile)
        assert torch.equal(matrix(experts, leaf, torch.float32), getattr(expected, leaf))
        assert getattr(experts, leaf).nbytes * 2 == getattr(expected, leaf).numel()
    tokens = tiny.tokens(97, 2, 20)
    assert (stored.model(tokens) - plain.model(tokens)).abs().max() <= 2e-5
    assert (
        stored.generate(prompt_ids=[3, 5], max_new_tokens=8, temperature=0).token_ids
        == plain.generate(prompt_ids=[3, 5], max_new_tokens=8, temperature=0).token_ids
    )


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_they_are_quantised_again(pair: tuple[Path, Path], name: str, tmp_path: Path) -> None:
    """While loading and in a folder: one expert at a time, as all of them at once would be."""
    ours, theirs = (minillm.load(each, "float32", quantize=name).model.state_dict() for each in pair)
    quantize.quantize(pair[0], tmp_path / "made", ints.scheme(name))
    again = minillm.load(tmp_path / "made", "float32").model.state_dict()
    assert ours.keys() == theirs.keys() == again.keys()
    assert all(torch.equal(ours[key], theirs[key]) and torch.equal(again[key], theirs[key]) for key in theirs)


@torch.no_grad()
def test_transformers_reads_the_same(pair: tuple[Path, Path]) -> None:
    config = transformers.Mxfp4Config(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        pair[0], dtype=torch.float32, quantization_config=config, **EAGER
    ).eval()
    model, tokens = minillm.load(pair[0], "float32").model, tiny.tokens(97, 2, 20)
    with recorded(theirs) as routes:
        expected = tiny.logits(theirs, tokens)
    with played(model, routes):
        assert (model(tokens) - expected).abs().max() <= 2e-5


def without(name: str) -> Callable:
    return lambda named: {key: tensor for key, tensor in named.items() if key != name}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable:
    return lambda named: {**named, name: change(named[name]).contiguous()}


def more(t: Tensor) -> Tensor:
    return torch.cat((t, t[:1]))


BAD: dict[str, tuple[Callable, str]] = {
    "no factors": (
        without(f"{UP}_scales"),
        f"{UP}_scales is missing, without which {UP}_blocks is no MXFP4",
    ),
    "no blocks": (without(f"{UP}_blocks"), f"tensors no rule claims: {UP}_scales"),
    "fewer factors": (
        changed(f"{UP}_scales", lambda t: t[..., :1]),
        f"{UP}_scales is [3, 192, 1], MXFP4 makes it [3, 192, 2]",
    ),
    "fewer blocks": (
        changed(f"{UP}_blocks", lambda t: t[:, :, :1]),
        f"{UP}_scales is [3, 192, 2], MXFP4 makes it [3, 192, 1]",
    ),
    "one more expert": (
        lambda named: changed(f"{DOWN}_blocks", more)(changed(f"{DOWN}_scales", more)(named)),
        f"{DOWN}_blocks is [4, 64, 96], the config needs [3, 64, 96]",
    ),
    "halves of blocks": (
        changed(f"{DOWN}_blocks", lambda t: t[..., :8]),
        f"{DOWN}_blocks is [3, 64, 3, 8], MXFP4 makes it [3, 64, 3, 16]",
    ),
    "blocks without experts": (
        changed(f"{DOWN}_blocks", lambda t: t[0]),
        f"{DOWN}_blocks is [64, 3, 16], MXFP4 makes it [experts, outputs, blocks, 16]",
    ),
    "factors that no number has": (
        changed(f"{UP}_scales", lambda t: t.index_fill(0, torch.tensor([2]), 255)),
        f"{UP}_scales has values that no factor has",
    ),
    "factors that are no powers": (
        changed(f"{UP}_scales", lambda t: t.float()),
        f"{UP}_scales is F32, MXFP4 makes it U8 or F8_E8M0",
    ),
    "blocks that are no bytes": (
        changed(f"{UP}_blocks", lambda t: t.float()),
        f"{UP}_blocks is F32, MXFP4 makes it U8",
    ),
    "bytes that are no blocks": (
        changed("model.layers.0.self_attn.q_proj.weight", lambda t: t.abs().byte()),
        "model.layers.0.self_attn.q_proj.weight is U8",
    ),
    "factors of two schemes": (
        lambda named: {**named, f"{UP}_blocks_scale_inv": torch.ones(1, 1)},
        f"{UP}_blocks is [3, 192, 2, 16], FP8 is of matrices",
    ),
    "the same twice": (
        lambda named: {**named, UP: torch.zeros(3, 64, 192)},
        "tensors for a parameter filled already",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tensors(pair: tuple[Path, Path], case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = BAD[case]
    folder = Path(shutil.copytree(pair[0], tmp_path / "bad"))
    save_file(damage(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    tiny.refused_by_command(folder, capsys, message)


def test_rows_that_are_no_whole_blocks(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A width of 80: two blocks and a half."""
    folder = Path(shutil.copytree(pair[0], tmp_path / "bad"))
    tiny.edit_config(folder, intermediate_size=80)
    tiny.refused(folder, f"{DOWN}_blocks is [3, 64, 96], the config needs [3, 64, 80]")


CONTRADICTIONS = {"experts_per_token": 3, "initial_context_length": 17, "hidden_act": "gelu"}


@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_contradictions_in_a_config(pair: tuple[Path, Path], key: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "bad"))
    tiny.edit_config(folder, **{key: CONTRADICTIONS[key]})
    tiny.refused(folder, f"{key} is ", str(CONTRADICTIONS[key]))


def test_the_published_config_agrees_with_itself() -> None:
    folder = shared("real-configs/openai__gpt-oss-20b")
    values = read(folder)
    spec, _, config = resolve(values)
    assert config.unread == []
    assert [layer.attention.window for layer in spec.layers] == [128, None] * 12
    assert resolve({**values, "layer_types": None})[0] == spec
    assert resolve({**values, "rope_scaling": None, "rope_parameters": None})[0] == spec
    assert (spec.final_norm.cast, spec.layers[0].ffn_norm.cast) == ("after_weight", "after_weight")
    assert json.loads((folder / "config.json").read_text())["experts_per_token"] == spec.layers[0].ffn.router.top_k
