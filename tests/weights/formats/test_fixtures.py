"""Checkpoints quantised by the real tools: the matrices that the tool makes of them, and the logits that follow.

To check another folder of `shared/quant`, add its line to FIXTURES: how the tool rounded the matrices that it recorded
the hashes of, and whether it recorded logits with the base's embedding and norms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

import minillm
from minillm import config
from minillm.llm import LLM
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.formats.packed import Made
from tests.conftest import shared

NEAR = 4e-6  # of the largest logit: the order of sums, which the processor chooses, has made up to 1.8e-6

Rounding = Callable[[Made, dict[str, Tensor]], Tensor]


def exact(made: Made, parts: dict[str, Tensor]) -> Tensor:
    return made.packed.dequantise(parts)


def to_bf16(made: Made, parts: dict[str, Tensor]) -> Tensor:
    """The tool computes in bf16, with operands that bf16 holds: a product is rounded once."""
    return made.packed.dequantise(parts).bfloat16()


def factors_to_bf16(made: Made, parts: dict[str, Tensor]) -> Tensor:
    """The tool makes bf16 of the fp16 factors, and then rounds each product to bf16."""
    return made.packed.dequantise({**parts, "scales": parts["scales"].bfloat16()}).bfloat16()


def without_negative_zeros(made: Made, parts: dict[str, Tensor]) -> Tensor:
    """What was recorded has a table with one zero."""
    return made.packed.dequantise(parts) + 0.0


class Fixture(NamedTuple):
    rounding: Rounding = exact
    plain_of: str | None = None  # whose embedding and norms the recorded logits were computed with, if not its own


STORIES = "checkpoints/stories260K"
FIXTURES = {
    "gptq/b2-g32-sym": Fixture(factors_to_bf16),
    "gptq/b3-g64-sym": Fixture(factors_to_bf16),
    "gptq/b4-g64-asym-v2": Fixture(factors_to_bf16),
    "gptq/b4-g64-sym": Fixture(factors_to_bf16),
    "gptq/b8-g64-sym": Fixture(factors_to_bf16),
    "awq/b4-g64-asym": Fixture(to_bf16),
    "bitsandbytes/nf4-double": Fixture(),
    "bitsandbytes/int8": Fixture(plain_of=STORIES),
    "mlx/affine4-g64": Fixture(),
    "torchao/int8-wo": Fixture(plain_of=STORIES),
    "torchao/float8-wo": Fixture(plain_of=STORIES),
}


FIXTURES |= dict.fromkeys(
    (
        "compressed-tensors/fp8-block",
        "compressed-tensors/fp8-dynamic-channel",
        "compressed-tensors/w8a8-int8-dynamic",
    ),
    Fixture(to_bf16, plain_of=STORIES),
)
FIXTURES |= dict.fromkeys(
    ("compressed-tensors/mxfp4a16", "compressed-tensors/nvfp4", "compressed-tensors/w4a16-g64-sym"), Fixture(to_bf16)
)
FIXTURES |= {
    "compressed-tensors/fp8-static-tensor": Fixture(to_bf16, plain_of=STORIES),
    "compressed-tensors/w8a8-int8-static": Fixture(to_bf16, plain_of=STORIES),
    "modelopt/nvfp4": Fixture(without_negative_zeros),
    "reconstructed/fbgemm-fp8": Fixture(plain_of=STORIES),
}


def sha256(values: Tensor) -> str:
    return hashlib.sha256(values.float().contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def loaded(folder: Path, fixture: Fixture) -> LLM:
    """In fp32, with the plain parameters that the recorded logits were computed with."""
    llm = minillm.load(folder, dtype="float32", kernels="reference")
    if fixture.plain_of:
        theirs = dict(minillm.load(shared(fixture.plain_of), dtype="float32").model.named_parameters())
        for name, parameter in llm.model.named_parameters():
            if parameter.dim() == 1 or name.startswith(("embedding.", "head.")):
                parameter.data.copy_(theirs[name])
    return llm


@pytest.mark.parametrize("name", FIXTURES)
def test_matrices_are_those_of_the_tool(name: str) -> None:
    folder = shared(f"quant/{name}")
    checkpoint = Checkpoint(folder, config.section(folder, config.read(folder)))
    hashes = json.loads((folder / "expected/outputs.json").read_text())["sha256_of_dequantised_as_f32"]
    assert len(hashes) >= 14
    for matrix, expected in hashes.items():
        made = checkpoint.stored[matrix]
        assert isinstance(made, Made), matrix
        parts = {part: each.values().view(each.shape) for part, each in made.parts.items()}
        assert sha256(FIXTURES[name].rounding(made, parts)) == expected, matrix
    quantised = {matrix for matrix, info in checkpoint.info.items() if info.format}
    assert set(hashes) <= quantised


@pytest.mark.parametrize("name", FIXTURES)
def test_logits_and_text_follow_from_the_matrices(name: str) -> None:
    folder = shared(f"quant/{name}")
    expected = load_file(folder / "expected/outputs.safetensors")
    llm = loaded(folder, FIXTURES[name])
    logits = llm.model(expected["tokens"][None].long())[0]
    # What was rewritten by hand has no others.
    of = "" if name.startswith("reconstructed/") else "_dequantised_fp32"
    theirs = expected[f"logits{of}"]
    assert (logits - theirs).abs().max() <= NEAR * theirs.abs().max()
    greedy = expected[f"greedy{of}"].tolist()
    prompt = expected["prompt"].tolist()
    reply = llm.generate(prompt_ids=prompt, max_new_tokens=len(greedy), temperature=0, ignore_eos=True)
    assert reply.token_ids == greedy


def test_all_fixtures_of_these_tools_are_here() -> None:
    tools = {name.partition("/")[0] for name in FIXTURES}
    folders = [path.parent for path in shared("quant").glob("*/*/expected") if path.parent.parent.name in tools]
    assert {f"{folder.parent.name}/{folder.name}" for folder in folders} == set(FIXTURES)
