"""Every family's checkpoints, each rank having read its own share of the files: what the ranks compute is what one
process does, and together they read each value once, or as often as it is held."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

import minillm
from minillm.parallel import split, stages
from minillm.spec import Decoder as Spec
from tests.helpers import tiny
from tests.parallel.threads import Mesh, Stage, in_threads, led, share

AGREES = 2e-5
TOKENS = torch.tensor([[3, 17, 5, 60, 41, 8, 2, 33, 12]])
PROMPT = [3, 17, 5, 60]


def line(spec: Spec) -> list[tuple[int, int]]:
    """Two stages, cut where a model can be."""
    for cut in range(1, len(spec.layers)):
        spans = [(0, cut), (cut, len(spec.layers))]
        with contextlib.suppress(ValueError):
            stages.check(spec, spans)
            return spans
    return []


def most(spec: Spec) -> int:
    """Of up to 4 ranks as many as a model can lie in."""
    for ranks in (4, 3, 2):
        with contextlib.suppress(ValueError):
            split.check(spec, ranks)
            return ranks
    raise AssertionError("it can lie in one rank only")


# One of each family: what sets rows of a family apart is drawn in `test_split.py`.
FAMILIES = {family: row for row, (family, _) in reversed(tiny.ROWS.items())}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_a_family_over_ranks(family: str, tmp_path: Path) -> None:
    tiny.save(tmp_path, *tiny.ROWS[FAMILIES[family]])
    one = minillm.load(tmp_path, dtype="float32", device="cpu", kernels="reference")
    expected = one.model(TOKENS)
    text = one.generate(prompt_ids=PROMPT, max_new_tokens=8, temperature=0, ignore_eos=True).token_ids
    ranks = most(one.spec)
    for logits in in_threads(ranks, lambda rank: share(tmp_path, rank).model(TOKENS)):
        assert (logits - expected).abs().max() <= AGREES
    how = {"prompt_ids": PROMPT, "max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
    assert led(tmp_path, ranks, lambda llm: llm.generate(**how).token_ids) == text
    if spans := line(one.spec):
        layers = ",".join(str(end - first) for first, end in spans)
        kind = Mesh if ranks > 2 else Stage  # each stage in two ranks, where a model can lie in these
        assert led(tmp_path, 2 * kind.WIDE, lambda llm: llm.generate(**how).token_ids, kind, layers=layers) == text
    else:
        assert family in UNCUT


# Two layers of two kinds, or layers that are given more than hidden states, or another's keys.
UNCUT = {
    "bamba",
    "granitemoehybrid",
    "nemotron_h",
    "cohere2",
    "exaone_moe",
    "gemma3_text",
    "gemma3n_text",
    "gemma4_text",
    "gemma4_unified_text",
    "gpt_neo",
    "gpt_oss",
    "lfm2",
    "lfm2_moe",
    "mellum",
    "olmo3",
    "olmo_hybrid",
    "qwen2_5_vl",
    "qwen2_audio",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
}
