"""Values as blocks: what reading undoes, bit for bit as the package of llama.cpp's authors has it where a block's scale
is that of its largest value, and no farther from the values than llama.cpp's own files where it is searched for."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from minillm.weights.gguf import bits, reader
from minillm.weights.gguf.quantise import QUANTISERS, packed
from minillm.weights.gguf.writer import BLOCKS
from tests.conftest import shared
from tests.weights.gguf.test_fixtures import only

SIMPLE = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
SEARCHED = ("IQ4_NL", "Q4_K", "Q5_K", "Q6_K")
# The squared error of a matrix over that of llama.cpp's own blocks; the largest ratio seen was 1.0066, of a matrix with
# 128 blocks: sums in another order take another of two equally good scales.
RATIO = 1.01
NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
         "up_proj": "ffn_up", "down_proj": "ffn_down"}  # fmt: skip


def again(kind: str, values: Tensor) -> Tensor:
    """Values `[…]` from their blocks."""
    dequantise = BLOCKS[kind].dequantise
    assert dequantise is not None
    return dequantise(QUANTISERS[kind](values.reshape(-1, BLOCKS[kind].block))).view(values.shape)


@given(st.sampled_from([(1, 1), (16, 4), (32, 1), (32, 2), (64, 4), (1, 2)]), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_numbers_of_a_few_bits(shape: tuple[int, int], seed: int) -> None:
    run, size = shape
    values = torch.randint(0, 2**size, (3, run * 16), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    assert torch.equal(bits.planes(packed(values, run, size), run, size).view(torch.uint8), values)


@pytest.mark.parametrize("kind", SIMPLE)
def test_bit_for_bit_as_the_package(kind: str) -> None:
    values = torch.randn(1000, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 1000)[:, None]
    values[0], values[1], values[2, 1:] = 0, -3.25, 0
    theirs = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[kind]).view(np.uint8)
    ours = QUANTISERS[kind](values.view(-1, BLOCKS[kind].block)).numpy()
    assert np.array_equal(theirs.reshape(-1), ours.reshape(-1))


# The largest error over twice the largest value: half a step of as many as there are, a whole one where the last is cut
# off, and the rounding of scales to fp16, which is more for smaller values, as d of Q6_K is a 4,096th of the largest.
# Where scales are searched for, 1.15 times the most seen in 15,360 blocks.
LIMITS = {"Q8_0": 0.505 / 254 * 1.15, "Q4_0": 1.01 / 16, "Q4_1": 0.51 / 15, "Q5_0": 1.01 / 32, "Q5_1": 0.52 / 31,
          "IQ4_NL": 0.0762, "Q4_K": 0.0665, "Q5_K": 0.0358, "Q6_K": 0.0129}  # fmt: skip


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 1e3), st.sampled_from(["normal", "uniform", "heavy", "one side"]))
@settings(max_examples=40, deadline=None)
def test_near_the_values(seed: int, size: float, shape: str) -> None:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(8, 256, generator=random)
    values = {"normal": values, "uniform": torch.rand(8, 256, generator=random) - 0.5, "heavy": values**3,
              "one side": values.abs()}[shape] * size  # fmt: skip
    for kind, limit in LIMITS.items():
        found = again(kind, values)
        width = 2 * values.abs().amax(1)
        assert ((found - values).abs().amax(1) <= limit * width).all(), kind


@pytest.mark.parametrize("kind", [*SIMPLE, *SEARCHED])
def test_blocks_of_one_value_and_of_none(kind: str) -> None:
    values = torch.zeros(4, 256)
    assert torch.equal(again(kind, values), values)
    values[1], values[2], values[3] = 1.0, -1.0, 1e-30
    found = again(kind, values)
    assert (found[1:3] - values[1:3]).abs().max() <= 1 / 256
    assert found[3].abs().max() <= 1e-30
    assert again(kind, values * 0 + 6e4).isfinite().all()


def matrices(folder: str) -> dict[str, Tensor]:
    """The matrices of a checkpoint in hub layout, by what llama.cpp calls them."""
    found = {}
    for name, values in load_file(shared(folder) / "model.safetensors").items():
        parts = name.split(".")
        if name == "model.embed_tokens.weight":
            found["token_embd.weight"] = values.float()
        elif len(parts) > 4 and parts[4] in NAMES and parts[5] == "weight":
            found[f"blk.{parts[2]}.{NAMES[parts[4]]}.weight"] = values.float()
    return found


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("story-qwen-256-Q4_K_M", "quant/base/story-qwen-256"),
        ("story-qwen-256-Q3_K_M", "quant/base/story-qwen-256"),  # some of which are Q4_K and Q5_K
        ("story-qwen-256-Q6_K", "quant/base/story-qwen-256"),
        ("stories260K-IQ4_NL", "checkpoints/stories260K"),
    ],
)
def test_no_farther_than_llama_cpp(name: str, folder: str) -> None:
    plain, seen = matrices(folder), set()
    for tensor, entry in reader.read(only(shared(f"quant/gguf/{name}"))).entries.items():
        kind = entry.kind
        if kind.name not in SEARCHED or "attn_q." in tensor or "attn_k." in tensor:  # Llama's are in another order
            continue
        raw = torch.empty(entry.nbytes // kind.nbytes, kind.nbytes, dtype=torch.uint8)
        entry.source.fill(raw, entry.start)
        values, theirs = plain[tensor], kind.dequantise(raw).view(entry.shape)  # type: ignore[misc]
        errors = [(each - values).square().sum() for each in (again(kind.name, values), theirs)]
        assert errors[0] <= RATIO * errors[1], tensor
        seen.add(kind.name)
    assert seen
