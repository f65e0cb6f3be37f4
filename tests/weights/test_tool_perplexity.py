"""Perplexity of what the real tools wrote, as it lies in memory, equal to theirs.

THEIRS was printed by this command: llama.cpp's own for GGUF files, for the others what transformers computes in fp32
with their matrices dequantised, whose bits `formats/test_fixtures.py` compares with the tools'.

    python examples/tool_perplexity.py --text FILE --dtype float32 PATH …

FILE is eval.txt, and for the two models that learnt the demonstration's stories 80 of these.
"""

from __future__ import annotations

import math
import random
import sys
from functools import cache

import pytest

import minillm
from minillm.perplexity import nats
from tests.conftest import ROOT, SHARED, shared

CONTEXT = 128
THEIRS = {
    "stories260K": {
        "bitsandbytes/int8": 3.74374,
        "compressed-tensors/fp8-block": 3.76498,
        "compressed-tensors/fp8-dynamic-channel": 3.77567,
        "compressed-tensors/fp8-static-tensor": 3.76406,
        "compressed-tensors/w8a8-int8-dynamic": 3.74547,
        "compressed-tensors/w8a8-int8-static": 3.75655,
        "gguf/stories260K-BF16": 3.74150,
        "gguf/stories260K-F16": 3.74016,
        "gguf/stories260K-IQ4_NL": 3.94355,
        "gguf/stories260K-Q4_0": 3.98842,
        "gguf/stories260K-Q4_1": 3.94005,
        "gguf/stories260K-Q5_0": 3.80307,
        "gguf/stories260K-Q8_0": 3.74273,
        "gguf/stories-deepseek-v3-Q8_0": 5.43590,
        "gguf/stories-gemma2-Q8_0": 11.18905,
        "gguf/stories-qwen3-moe-Q8_0": 6.12399,
        "reconstructed/fbgemm-fp8": 3.77567,
        "torchao/float8-wo": 3.78179,
        "torchao/int8-wo": 3.74615,
    },
    "demonstration": {
        "awq/b4-g64-asym": 1.59828,
        "bitsandbytes/nf4-double": 1.59788,
        "compressed-tensors/mxfp4a16": 1.59650,
        "compressed-tensors/nvfp4": 1.60007,
        "compressed-tensors/w4a16-g64-sym": 1.59742,
        "gguf/story-qwen-256-IQ2_XS": 1.59533,
        "gguf/story-qwen-256-IQ4_XS": 1.59761,
        "gguf/story-qwen-256-Q2_K": 1.59737,
        "gguf/story-qwen-256-Q3_K_M": 1.59348,
        "gguf/story-qwen-256-Q4_K_M": 1.59628,
        "gguf/story-qwen-256-Q6_K": 1.59693,
        "gguf/story-qwen-256-TQ1_0": 2.11947,
        "gguf/zoo-llama-256": 1.58930,
        "gptq/b2-g32-sym": 1.59743,
        "gptq/b3-g64-sym": 1.59800,
        "gptq/b4-g64-asym-v2": 1.59548,
        "gptq/b4-g64-sym": 1.59736,
        "gptq/b8-g64-sym": 1.59707,
        "mlx/affine4-g64": 1.60122,
        "modelopt/nvfp4": 1.60011,
    },
}
ALL = {name: (of, value) for of, each in THEIRS.items() for name, value in each.items()}
ROUNDED = 1e-5  # the figures have five digits behind the point
LLAMA_ROUNDS = 1e-3  # activations to 8 bits: 0.084 % measured, where all that runs here is in fp32


@cache
def text(of: str) -> str:
    if of == "stories260K":
        return shared("checkpoints/eval.txt").read_text(encoding="utf-8")
    sys.path.insert(0, str(ROOT / "examples"))
    from story_grammar import story

    return "".join(f"{story(random.Random(seed))[1]}\n" for seed in range(80))


@pytest.mark.parametrize("name", ALL)
def test_perplexity_is_that_of_the_tool(name: str) -> None:
    of, theirs = ALL[name]
    llm = minillm.load(shared(f"quant/{name}"), dtype="float32")
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode(text(of))
    ours = math.exp(nats(llm, ids, CONTEXT, CONTEXT) / (len(ids) - 1))
    assert ours == pytest.approx(theirs, abs=ROUNDED, rel=LLAMA_ROUNDS if name.startswith("gguf/") else 0)


def test_every_fixture_that_can_be_read_is_here() -> None:
    refused = {"hqq/w4-g64"}
    found = {path.parent.relative_to(SHARED / "quant").as_posix() for path in SHARED.glob("quant/*/*/expected")}
    assert found - refused - set(ALL) == set()
