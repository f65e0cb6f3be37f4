"""GPTQ: streams of bits, both versions of zeros, groups anywhere, and what files say of them wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import minillm
from tests.helpers import tiny
from tests.helpers.values import values
from tests.weights.formats.by_hand import MATRIX, dequantised, exchange, found, in_memory, integers, matrix, rows

V2 = {"checkpoint_format": "gptq_v2", "sym": False}
V1 = {"checkpoint_format": "gptq", "sym": False}


def stored_zeros(z: Tensor, bits: int, version: int) -> Tensor:
    """As GPTQModel 7.7 writes them: version 1 takes one off each number of 3 bits, else off a word as a whole."""
    if version == 1 and bits == 3:
        return rows((z - 1) % 8, bits)
    words = rows(z, bits).long()
    if version == 1:
        words = (words - int("1".zfill(bits) * (32 // bits), 2)) % 2**32
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def encoded(
    q: Tensor, z: Tensor, scales: Tensor, bits: int, version: int = 2, g_idx: Tensor | None = None
) -> dict[str, Tensor]:
    """The tensors of q `[I, O]`, z and scales `[groups, O]`."""
    made = {"qweight": rows(q.t(), bits).t(), "qzeros": stored_zeros(z, bits, version), "scales": scales}
    return {f"model.m.{name}": each for name, each in made.items()} | (
        {} if g_idx is None else {"model.m.g_idx": g_idx}
    )


def formula(q: Tensor, z: Tensor, scales: Tensor, group_I: Tensor) -> Tensor:
    made = torch.empty(q.shape[1], q.shape[0])
    for i, g in enumerate(group_I.tolist()):
        made[:, i] = scales[g].float() * (q[i] - z[g])
    return made


def problem(bits: int, inputs: int, outputs: int, groups: int, seed: int, low: int = 0) -> tuple[Tensor, ...]:
    q = integers(0, 2**bits, (inputs, outputs), seed)
    z = integers(low, 2**bits, (groups, outputs), seed + 1)
    scales = (integers(1, 2048, (groups, outputs), seed + 2) / 1024).half()
    return q, z, scales


@given(
    st.sampled_from((2, 3, 4, 8)), st.integers(1, 3), st.integers(1, 2), st.sampled_from((1, 2, 4)),
    st.sampled_from((1, 2)), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_round_trip(bits: int, blocks: int, wide: int, groups: int, version: int, anywhere: bool, seed: int) -> None:
    """Zeros may be 0, which version 1 borrows for."""
    inputs, outputs = 32 * blocks, 32 * wide
    q, z, scales = problem(bits, inputs, outputs, groups, seed)
    size = -(-inputs // groups)
    group_I = torch.arange(inputs, dtype=torch.int32) // size
    if anywhere:
        group_I = group_I[torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))]
    tensors = encoded(q, z, scales, bits, version, group_I if anywhere else None)
    section = {**(V1, V2)[version - 1], "bits": bits, "group_size": size}
    assert torch.equal(matrix(tensors, section), formula(q, z, scales, group_I))


def test_a_borrow_by_hand() -> None:
    """Zeros 0, 5, 0, 0, … in version 1: 0 - 1 takes one from each neighbour above, so 0x00000050 - 0x11111111."""
    q, z, scales = problem(4, 32, 8, 1, 0)
    z[0] = torch.tensor([0, 5, 0, 0, 0, 0, 0, 0])
    tensors = encoded(q, z, scales, 4)
    tensors["model.m.qzeros"] = torch.tensor([[0xEEEEEF3F - 2**32]], dtype=torch.int32)
    assert torch.equal(matrix(tensors, V1), formula(q, z, scales, torch.zeros(32, dtype=torch.int32)))


@pytest.mark.parametrize("label", ["gptq", "gptq_v2", None])
@pytest.mark.parametrize("version", [1, 2])
def test_symmetric_zeros_tell_their_version_whatever_the_label_says(label: str | None, version: int) -> None:
    q, _, scales = problem(4, 32, 32, 2, 5)
    z = torch.full((2, 32), 8, dtype=torch.int32)
    tensors = encoded(q, z, scales, 4, version)
    made = matrix(tensors, {"checkpoint_format": label, "sym": True})
    assert torch.equal(made, formula(q, z, scales, torch.arange(32) // 16))


@pytest.mark.parametrize("indexed", [True, False])
def test_one_group_over_all_inputs(indexed: bool) -> None:
    q, z, scales = problem(4, 64, 32, 1, 3)
    group_I = torch.zeros(64, dtype=torch.int32)
    tensors = encoded(q, z, scales, 4, g_idx=group_I if indexed else None)
    made = matrix(tensors, {**V2, "bits": 4, "group_size": -1, "desc_act": True})
    assert torch.equal(made, formula(q, z, scales, group_I))


@pytest.mark.parametrize(("bits", "inputs"), [(2, 16), (4, 8), (8, 4)])
def test_as_many_inputs_as_a_word_has_numbers(bits: int, inputs: int) -> None:
    """One row of words, as it lies in a file: turned, it has one column, which counts as contiguous in any layout."""
    q, z, scales = problem(bits, inputs, 32, 1, 3)
    parts = {name.removeprefix("model.m."): each for name, each in encoded(q, z, scales, bits).items()}
    parts["qweight"] = parts["qweight"].clone(memory_format=torch.contiguous_format)
    expected = formula(q, z, scales, torch.zeros(inputs, dtype=torch.int32))
    assert torch.equal(dequantised(parts, V2), expected)
    assert torch.equal(in_memory(parts, V2), expected)


def test_modules_of_their_own_bits() -> None:
    q, z, scales = problem(8, 32, 32, 1, 4)
    tensors = encoded(q, z, scales, 8)
    section = {**V2, "bits": 4, "group_size": 32}
    made = matrix(tensors, {**section, "dynamic": {r"+:.*\.m": {"bits": 8}}})
    assert torch.equal(made, formula(q, z, scales, torch.zeros(32, dtype=torch.int32)))
    with pytest.raises(ValueError, match=r"model.m.weight is of 8 bits, config.json says 4"):
        found(tensors, section)


@pytest.mark.parametrize("packing", ["auto_round:auto_gptq", "auto_round"])
def test_auto_round(packing: str) -> None:
    q, z, scales = problem(4, 32, 32, 2, 6)
    said = {"quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": 16, "sym": False}
    tensors = encoded(q, z, scales, 4, version=1)
    if packing == "auto_round":
        with pytest.raises(ValueError, match="zeros of two versions"):
            matrix(tensors, said)
    else:
        assert torch.equal(matrix(tensors, said), formula(q, z, scales, torch.arange(32) // 16))
    half = torch.full_like(z, 8)
    made = matrix(encoded(q, half, scales, 4, version=1), {**said, "sym": True})
    assert torch.equal(made, formula(q, half, scales, torch.arange(32) // 16))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({"backend": "marlin"}, {}, "GPTQ in the layout 'marlin' is not read"),
        ({"is_marlin_format": True}, {}, "GPTQ in the layout 'marlin' is not read"),
        ({"checkpoint_format": "gptq_p"}, {}, "GPTQ in the layout 'gptq_p' is not read; use a checkpoint in gptq"),
        ({"group_size": 64}, {}, "model.m.weight has 2 groups of 32 inputs, config.json says group_size 64"),
        ({"bits": 8}, {}, "model.m.weight is of 4 bits, config.json says 8"),
        ({"desc_act": True}, {}, "model.m.g_idx is missing, and desc_act is on"),
        ({}, {"qzeros": None}, "model.m.qzeros is missing, without which model.m.weight is no GPTQ"),
        ({}, {"scales": None}, "model.m.scales is missing"),
        ({}, {"scales": torch.ones(2, 32, dtype=torch.int32)}, "model.m.scales is I32, GPTQ makes it F16"),
        ({}, {"qzeros": torch.ones(2, 9, dtype=torch.int32)}, "model.m.qzeros is .2, 9"),
        ({}, {"qzeros": torch.ones(3, 4, dtype=torch.int32)}, r"model.m.qzeros is .3, 4., GPTQ makes it .2, 4."),
        ({}, {"g_idx": torch.zeros(31, dtype=torch.int32)}, r"model.m.g_idx is .31., GPTQ makes it .32."),
        (
            {},
            {"g_idx": torch.full((32,), 2, dtype=torch.int32)},
            "weight: g_idx names groups 2 to 2, there are 2",
        ),
        ({}, {"g_idx": torch.full((32,), -1, dtype=torch.int32)}, "g_idx names groups -1 to -1, there are 2"),
    ],
)
def test_what_does_not_fit_is_named(section: dict[str, Any], changes: dict[str, Tensor | None], message: str) -> None:
    tensors = encoded(*problem(4, 32, 32, 2, 7), 4)
    for name, each in changes.items():
        tensors.pop(f"model.m.{name}", None)
        if each is not None:
            tensors[f"model.m.{name}"] = each
    with pytest.raises(ValueError, match=message):
        matrix(tensors, {"sym": False, **section})


def test_a_matrix_is_not_there_twice() -> None:
    tensors = encoded(*problem(4, 32, 32, 2, 8), 4)
    with pytest.raises(ValueError, match=r"weight is there twice, as GPTQ and as a plain tensor"):
        found({**tensors, MATRIX: torch.zeros(32, 32)})


def test_fused_parts_keep_zeros_factors_and_orders_of_their_own(tmp_path: Path) -> None:
    """q, k and v of a layer, each with its own groups, beside a plain folder of the same values; what the section says
    lies in a file of its own, as before 2024."""
    tiny.save(tmp_path / "plain", "llama", {"hidden_size": 96, "num_hidden_layers": 1})
    shutil.copytree(tmp_path / "plain", tmp_path / "packed")
    plain, packed = dict[str, Tensor](), dict[str, Tensor]()
    for seed, part in enumerate("qkv"):
        name = f"model.layers.0.self_attn.{part}_proj."
        outputs = load_file(tmp_path / "plain/model.safetensors")[f"{name}weight"].shape[0]
        q, z, scales = problem(8, 96, outputs, 3, 10 * seed)
        group_I = torch.arange(96, dtype=torch.int32)[torch.randperm(96)] // 32
        plain[f"{name}weight"] = formula(q, z, scales / 100, group_I)
        tensors = encoded(q, z, scales / 100, 8, 1, group_I)
        packed |= {each.replace("model.m.", name): values for each, values in tensors.items()}
    exchange(tmp_path / "plain", list(plain), plain)
    exchange(tmp_path / "packed", list(plain), packed)
    said = {"bits": 8, "group_size": 32, "desc_act": True, "sym": False, "checkpoint_format": "gptq"}
    (tmp_path / "packed/quantize_config.json").write_text(json.dumps(said))
    first, second = (minillm.load(tmp_path / each, dtype="float32").model for each in ("plain", "packed"))
    theirs, ours = dict(first.named_parameters()), values(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (tmp_path / "packed/quantize_config.json").write_text(json.dumps({**said, "group_size": 48}))
    tiny.refused(tmp_path / "packed", "_proj.weight has 3 groups of 96 inputs, config.json says group_size 48")
