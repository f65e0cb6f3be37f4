"""Which kind each tensor gets: as in files that llama.cpp's own tool made, and by hand where there is none of those."""

from __future__ import annotations

import pytest

from minillm.weights.gguf import mixtures, reader
from minillm.weights.gguf.mixtures import MIXTURES, Model
from minillm.weights.gguf.quantise import QUANTISERS
from tests.conftest import shared
from tests.weights.gguf.test_fixtures import only

LLAMA = Model(12, 0, 2, tied=False)


@pytest.mark.parametrize(
    ("name", "mixture", "of"),
    [
        ("story-qwen-256-Q4_K_M", "q4_k_m", Model(2, 0, 2, tied=True)),
        ("story-qwen-256-Q6_K", "q6_k", Model(2, 0, 2, tied=True)),
        ("stories260K-F16", "f16", Model(5, 0, 2, tied=True)),
        ("stories260K-BF16", "bf16", Model(5, 0, 2, tied=True)),
        ("stories260K-Q8_0", "q8_0", Model(5, 0, 2, tied=True)),
        ("stories260K-Q4_0", "q4_0", Model(5, 0, 2, tied=True)),
        ("stories260K-Q4_1", "q4_1", Model(5, 0, 2, tied=True)),
        ("stories260K-Q5_0", "q5_0", Model(5, 0, 2, tied=True)),
        ("stories260K-IQ4_NL", "iq4_nl", Model(5, 0, 2, tied=True)),
        ("stories-qwen3-moe-Q8_0", "q8_0", Model(4, 16, 2, tied=False)),
        ("stories-deepseek-v3-Q8_0", "q8_0", Model(4, 16, 1, tied=False)),
    ],
)
def test_as_the_tool_has_it(name: str, mixture: str, of: Model) -> None:
    contents = reader.read(only(shared(f"quant/gguf/{name}")))
    for tensor, entry in contents.entries.items():
        assert mixtures.kind(mixture, tensor, entry.shape, of) == entry.kind.name, tensor
    assert contents.metadata["general.file_type"] == MIXTURES[mixture].file_type


def kinds(mixture: str, part: str, of: Model, row: int = 256) -> list[str]:
    """Of the same tensor, in each layer."""
    return [mixtures.kind(mixture, f"blk.{i}.{part}.weight", (256, row), of) for i in range(of.layers)]


def test_layers_that_matter_most() -> None:
    """The outer eighths and every third between, in a medium file; the first four or the first eighth in a small one:
    all as llama.cpp 0c1e5709's tool had them in files of these models."""
    medium = [f"Q{digit}_K" for digit in "644644644666"]
    for part in ("attn_v", "attn_qkv", "ffn_down", "ffn_down_exps"):
        assert kinds("q4_k_m", part, LLAMA) == medium
        assert kinds("q5_k_m", part, LLAMA) == [each.replace("4", "5") for each in medium]
    assert kinds("q4_k", "attn_v", LLAMA) == ["Q5_K"] * 4 + ["Q4_K"] * 8
    assert kinds("q4_k", "ffn_down", LLAMA) == kinds("iq4_nl", "ffn_down", LLAMA)[:1] + ["Q4_K"] * 11
    for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert {*kinds("q4_k_m", part, LLAMA), *kinds("q4_k", part, LLAMA)} == {"Q4_K"}
    assert set(kinds("iq4_nl", "attn_v", LLAMA)) == {"IQ4_NL"}
    assert set(kinds("iq4_nl", "attn_v", Model(12, 0, 4, tied=False))) == {"Q5_K"}
    assert set(kinds("q4_k_m", "attn_v", Model(80, 0, 8, tied=False))) == {"Q6_K", "Q5_K"}
    assert set(kinds("q4_k", "attn_v", Model(80, 0, 8, tied=False))) == {"Q5_K"}


def test_eight_experts() -> None:
    of = Model(12, 8, 2, tied=False)
    for mixture in ("q4_0", "q4_k_m", "q6_k"):
        assert {*kinds(mixture, "attn_v", of), *kinds(mixture, "attn_k", of)} == {"Q8_0"}
    assert set(kinds("q4_k_m", "attn_output", of)) == set(kinds("iq4_nl", "attn_output", of)) == {"Q5_K"}
    assert set(kinds("q5_k_m", "attn_output", of)) == {"Q5_K"}
    assert set(kinds("q6_k", "attn_output", of)) == {"Q6_K"}


def test_rows_that_are_no_whole_blocks() -> None:
    """A kind of smaller blocks, or F16."""
    for mixture, smaller in (("q4_k", "Q5_0"), ("q5_k", "Q5_1"), ("q6_k", "Q8_0"), ("q4_0", "Q4_0")):
        assert set(kinds(mixture, "ffn_up", LLAMA, 96)) == {smaller}
        assert set(kinds(mixture, "ffn_up", LLAMA, 80)) == {"F16"}
    assert set(kinds("bf16", "ffn_up", LLAMA, 7)) == {"BF16"}


def test_head_embedding_and_what_stays_whole() -> None:
    tied, shape = Model(12, 0, 2, tied=True), (1000, 256)
    assert mixtures.kind("q4_k_m", "output.weight", shape, LLAMA) == "Q6_K"
    assert mixtures.kind("q4_k_m", "token_embd.weight", shape, LLAMA) == "Q4_K"
    assert mixtures.kind("q4_0", "token_embd.weight", shape, tied) == "Q6_K"
    assert mixtures.kind("q8_0", "output.weight", shape, LLAMA) == "Q8_0"
    assert mixtures.kind("q4_k", "output.weight", (1000, 96), LLAMA) == "Q8_0"
    assert mixtures.kind("q4_0", "output.weight", shape, LLAMA, pure=True) == "Q4_0"
    whole = {"blk.0.attn_norm.weight": (256,), "blk.0.ffn_gate_inp.weight": (8, 256), "blk.0.attn_q.bias": (256,),
             "blk.0.ffn_gate_exps.bias": (8, 256), "blk.0.attn_sinks.weight": (8,)}  # fmt: skip
    for tensor, size in whole.items():
        assert {mixtures.kind(mixture, tensor, size, LLAMA) for mixture in MIXTURES} == {"F32"}


def test_every_kind_can_be_made() -> None:
    made = {mixture.kind for mixture in MIXTURES.values()} | set(mixtures.SMALLER.values())
    assert made | {rule[3] for rule in mixtures.RULES} == set(QUANTISERS)
