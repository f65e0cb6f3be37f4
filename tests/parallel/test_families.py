"""Every family's checkpoints, each rank having read its own share of the files: what the ranks compute is what one
process does, and together they read each value once, or as often as it is held."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

import minillm
from minillm.llm import LLM
from minillm.parallel import split, stages
from minillm.spec import Decoder as Spec
from tests.helpers import tiny
from tests.parallel.drawn import saved
from tests.parallel.threads import Mesh, Stage, in_threads, led, share

AGREES = 2e-5
TOKENS = torch.tensor([[3, 17, 5, 60, 41, 8, 2, 33, 12]])
HOW = {"prompt_ids": [3, 17, 5, 60], "max_new_tokens": 4, "temperature": 0, "ignore_eos": True}

# One of each family: what sets rows of a family apart is drawn in `test_split.py`.
FAMILIES = {family: row for row, (family, _) in reversed(tiny.ROWS.items())}


def loaded(folder: Path, family: str, **changes: Any) -> LLM:
    """The model of one process, whose files are in the folder."""
    return minillm.load(saved(folder, FAMILIES[family], **changes), dtype="float32", device="cpu", kernels="reference")


def text(llm: LLM) -> Any:
    return llm.generate(**HOW).token_ids


def fewest(spec: Spec) -> int:
    """How many ranks a model can lie in, 2 if it can be."""
    return split.able(spec, 4)[1]


def line(spec: Spec) -> str | None:
    """Two stages, cut where a model can be; many with three layers cannot, as each stage needs some of all kinds."""
    count = len(spec.layers)
    for cut in range(1, count):
        with contextlib.suppress(ValueError):
            stages.check(spec, [(0, cut), (cut, count)])
            return f"{cut},{count - cut}"
    return None


UNSPLIT = {"deepseek_v4"}  # one key for all heads


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    for family in UNSPLIT:
        spec = loaded(tmp_path, family).spec
        assert line(spec) is None
        with pytest.raises(ValueError, match="cannot share this model: layer 0 has one key for all heads"):
            split.check(spec, 2)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - UNSPLIT))
@torch.no_grad()
def test_a_family_over_ranks(family: str, tmp_path: Path) -> None:
    """And over stages, which give the same bits."""
    one = loaded(tmp_path, family)
    expected = one.model(TOKENS)

    for logits in in_threads(fewest(one.spec), lambda rank: share(tmp_path, rank).model(TOKENS)):
        assert (logits - expected).abs().max() <= AGREES
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    if layers := line(one.spec):
        first = in_threads(2, lambda rank: share(tmp_path, rank, layers=layers).model(TOKENS), Stage)[0]
        assert torch.equal(first, expected)


ATTENDS, WINDOW, STATE = "full_attention", "sliding_attention", "linear_attention"
# What is split by each rule of `kept.py`, and what a stage has or lacks, by a family that stands for it. Of layers of
# two kinds there are four, so that each stage has both.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "kv heads on two ranks each": ("llama", {}),
    "all in one norm over heads; post-norms alone": ("olmo2", {}),
    "latents": ("deepseek_v3", {}),
    "an indexer, and layers that follow it": ("glm_moe_dsa", {"index_topk": 3, "num_attention_heads": 6}),
    "blocks of each kv head": (
        "minimax_m3_vl",
        {"layer_types": ["minimax_m3_sparse"] * 4, "index_block_size": 2, "index_topk_blocks": 2},
    ),
    "experts and what all share": ("qwen2_moe", {}),
    "sinks and windows": ("gpt_oss", {"num_hidden_layers": 4, "layer_types": [WINDOW, ATTENDS] * 2}),
    "states, and gates beside queries": ("qwen3_next", {"num_hidden_layers": 4, "layer_types": [STATE, ATTENDS] * 2}),
    "convolutions": ("lfm2", {"num_hidden_layers": 4, "layer_types": ["conv", ATTENDS] * 2}),
    "a state space": ("mamba2", {}),
    "recurrences": ("recurrent_gemma", {"num_hidden_layers": 4}),
    "a state space for each channel": ("falcon_mamba", {}),
    "a state space beside attention": ("falcon_h1", {}),
    "layers side by side, biases": ("phi", {}),
    "positions, a plain feed-forward": ("gpt2", {}),
    "slopes, a norm behind the embedding": ("bloom", {}),
    "four norms, capped scores": ("gemma2", {"num_hidden_layers": 4, "layer_types": [WINDOW, ATTENDS] * 2}),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_over_many_ranks_and_stages_of_ranks(rule: str, tmp_path: Path) -> None:
    family, changes = RULES[rule]
    one = loaded(tmp_path, family, **changes)
    expected, ranks = text(one), split.able(one.spec, 4)[-1]
    assert ranks > 2
    assert led(tmp_path, ranks, text) == expected
    layers = line(one.spec)
    assert layers is not None
    assert led(tmp_path, 4, text, Mesh, layers=layers) == expected


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_layers_that_are_given_more_over_many_ranks(family: str, tmp_path: Path) -> None:
    """Embeddings of layers, streams, keys of another layer: over 4 ranks, and no stages."""
    one = loaded(tmp_path, family)
    assert line(one.spec) is None
    assert led(tmp_path, split.able(one.spec, 4)[-1], text) == text(one)
