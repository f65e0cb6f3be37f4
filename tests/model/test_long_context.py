"""Positions before, at and far beyond the original context, for every kind of rotary scaling, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import minillm
from minillm.families import resolve
from minillm.llm import LLM
from tests.helpers import tiny

FP32 = 2e-5
SCALED = [
    *("llama-linear", "llama-dynamic", "llama-dynamic-beyond", "llama-llama3"),
    *("llama-yarn", "llama-yarn all", "llama-yarn mscale", "deepseek_v3"),
    *("phi3-long", "phi3-partial", "olmo3-yarn", "gemma3-scaled"),
]


def original(llm: LLM) -> int:
    """The context that the scaling stretches."""
    scalings = [layer.attention.rope.scaling for layer in llm.spec.layers]
    return next((s.original_positions for s in scalings if hasattr(s, "original_positions")), 32)


@pytest.mark.parametrize("row", SCALED)
@torch.no_grad()
def test_before_at_and_beyond_the_original_context(row: str, tmp_path: Path) -> None:
    theirs, llm = tiny.save(tmp_path, *tiny.ROWS[row]), minillm.load(tmp_path)
    for length in (original(llm) - 1, original(llm), original(llm) + 1, 5 * original(llm)):
        tokens = tiny.tokens(llm.spec.vocab_size, 1, length)
        assert (llm.model(tokens) - tiny.logits(theirs, tokens)).abs().max() <= FP32, length


@pytest.mark.parametrize("row", ["phi3-long", "phi3-partial"])
def test_a_batch_crosses_the_switch_row_by_row(row: str, tmp_path: Path) -> None:
    """LongRoPE turns every key otherwise once a sequence is longer than the original context: rows get there at
    different steps, and each writes what it writes alone, which is what transformers writes."""
    theirs, llm = tiny.save(tmp_path, *tiny.ROWS[row]), minillm.load(tmp_path)
    prompts = [tiny.tokens(llm.spec.vocab_size, length, seed=length).tolist() for length in (5, 23, 12, 30)]
    steps = original(llm) + 4
    together = llm.generate(prompt_ids=prompts, max_new_tokens=steps, temperature=0)
    for prompt, result in zip(prompts, together, strict=True):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=steps, do_sample=False)[0, len(prompt) :]
        assert result.token_ids == expected.tolist()
        assert llm.generate(prompt_ids=prompt, max_new_tokens=steps, temperature=0).token_ids == expected.tolist()


@pytest.mark.parametrize("family", ["gemma3_text", "olmo3"])
def test_a_ramp_that_is_not_rounded(family: str) -> None:
    """`truncate: false` inside the parameters of a kind of layer, as Olmo 3 may say it. transformers 5.23 looks for it
    one level up and rounds all the same; what holds is the same scaling in a family without kinds, where transformers
    reads it and parity is tested."""
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": 900.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "truncate": False,
    }
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    plain = {"rope_type": "default", "rope_theta": 900.0}
    nested = {"full_attention": scaling, "sliding_attention": plain}
    spec, _, _ = resolve({"model_type": family, **sizes, "num_hidden_layers": 8, "rope_parameters": nested})
    flat, _, _ = resolve({"model_type": "llama", **sizes, "rope_parameters": scaling})
    ropes = {layer.attention.window is None: layer.attention.rope for layer in spec.layers}
    assert ropes[True] == flat.layers[0].attention.rope
    assert ropes[False].scaling is None
