"""A checkpoint as its authors publish it: under their own names, experts in FP4 and other matrices in FP8, with a layer
that predicts a further token."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm.weights.formats import powers
from tests.helpers import tiny
from tests.helpers.compressed_cases import SIZES

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
PLAIN = ("embed", "head", "gate", "compressor", "weights_proj")  # whose matrices are not quantised


def native(name: str) -> str:
    """transformers writes some names of its own."""
    name = name.removeprefix("model.").replace("embed_tokens", "embed").replace("hc_head.hc_", "hc_head_")
    return name.replace(".attn.norm.", ".attn.kv_norm.")


def fp4(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest values in blocks of 32, two to a byte, and factors as bytes of E8M0."""
    blocks = matrix.unflatten(1, (-1, 32))
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1) / 6)) + 1
    scaled = blocks / exponent.exp2().unsqueeze(-1)
    code = (scaled.abs().unsqueeze(-1) - E2M1).abs().argmin(-1) + 8 * (scaled < 0)
    low, high = code.flatten(1).unflatten(1, (-1, 2)).unbind(-1)
    return (low + 16 * high).to(torch.uint8).view(torch.int8), (exponent + 127).to(torch.uint8)


def fp8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """In one block of up to 128 x 128."""
    exponent = torch.floor(torch.log2(matrix.abs().amax() / 448)) + 1
    return (matrix / exponent.exp2()).to(torch.float8_e4m3fn), (exponent + 127).to(torch.uint8).view(1, 1)


@torch.no_grad()
def test_names_and_types_of_the_authors(tmp_path: Path) -> None:
    """The logits of the same numbers, plain and under transformers' names."""
    plain, own = tmp_path / "plain", tmp_path / "own"
    sizes = {**SIZES, "hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 32}
    for folder in (plain, own):
        folder.mkdir()
    tiny.save(plain, "deepseek_v4", sizes)
    tensors, found = load_file(plain / "model.safetensors"), dict[str, Tensor]()
    for name, tensor in tensors.items():
        stem = native(name).removesuffix("weight")
        if tensor.dim() != 2 or not name.endswith("weight") or any(part in name for part in PLAIN):
            found[native(name)] = tensor
            continue
        if ".experts." in name:
            values, scale = fp4(tensor)
            made = powers._fp4({"weight": values, "scale": scale}, name)
        else:
            values, scale = fp8(tensor)
            made = powers._fp8({"weight": values, "scale": scale}, name)
        assert (made - tensor).abs().max() < 0.5 * tensor.abs().max()
        tensors[name], found[f"{stem}weight"], found[f"{stem}scale"] = made, values, scale.view(torch.float8_e8m0fnu)
    found |= {"mtp.0.norm.weight": torch.ones(64), "mtp.0.e_proj.weight": torch.ones(64, 64)}
    save_file(tensors, plain / "model.safetensors")
    save_file(found, own / "model.safetensors")
    (own / "config.json").write_text((plain / "config.json").read_text())
    section = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    tiny.edit_config(own, quantization_config={**section, "activation_scheme": "dynamic"}, expert_dtype="fp4")
    tokens = tiny.tokens(97, 1, 30)
    wanted = minillm.load(plain, kernels="reference").model(tokens)
    for keep in (False, True):
        llm = minillm.load(own, dtype="float32", kernels="reference", keep_quantized=keep)
        assert (llm.model(tokens) - wanted).abs().max() <= 2e-5


def test_a_factor_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no whole blocks of 32"):
        powers.matrices({"m.weight": Info((4, 8)), "m.scale": Info((4, 1))}, {})


class Info:
    """Of a tensor of bytes."""

    dtype = "U8"

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape


FORMS = {  # what the authors may have for the names that transformers writes, which reads all of these
    "behind the part": {r"hc_pre\.hc_(attn|mlp)_layer\.": r"hc_\1_layer.hc_pre.", r"hc_pre\.hc_head": "hc_head"},
    "without": {r"hc_pre\.": ""},
}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_other_names_of_what_mixes_streams(form: str, tmp_path: Path) -> None:
    tiny.save(tmp_path, *tiny.ROWS["hy_v4"])
    tokens = tiny.tokens(97, 1, 9)
    wanted = minillm.load(tmp_path).model(tokens)
    tensors = load_file(tmp_path / "model.safetensors")
    found = {"model.mtp_layers.0.norm.weight": torch.ones(48)}
    for name, tensor in tensors.items():
        for before, after in {**FORMS[form], r"(mlp|experts)\.linear_gate": r"\1.gate_proj"}.items():
            name = re.sub(before, after, name)
        found[name] = tensor
    assert len(found.keys() - tensors.keys()) > 20
    save_file(found, tmp_path / "model.safetensors")
    assert torch.equal(minillm.load(tmp_path).model(tokens), wanted)
