"""Every family's checkpoints, each rank having read its own share of the files: what the ranks compute is what one
process does, and together they read each value once, or as often as it is held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import minillm
from minillm.parallel import split
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.source import Source
from tests.helpers import tiny
from tests.parallel.threads import Thread, in_threads, led, share

AGREES = 2e-5
TOKENS = torch.tensor([[3, 17, 5, 60, 41, 8, 2, 33, 12]])
PROMPT = [3, 17, 5, 60]


def able(folder: Path) -> list[int]:
    """How many ranks a checkpoint can lie in."""
    spec = minillm.load(folder, device="cpu").spec
    found = []
    for ranks in (2, 3, 4):
        try:
            split.check(spec, ranks)
        except ValueError:
            continue
        found.append(ranks)
    return found


@pytest.fixture(scope="module")
def read() -> list[int]:
    return []


@pytest.mark.parametrize("row", sorted(tiny.ROWS))
@torch.no_grad()
def test_a_family_over_ranks(row: str, tmp_path: Path) -> None:
    tiny.save(tmp_path, *tiny.ROWS[row])
    one = minillm.load(tmp_path, dtype="float32", device="cpu", kernels="reference")
    expected = one.model(TOKENS)
    text = one.generate(prompt_ids=PROMPT, max_new_tokens=8, temperature=0, ignore_eos=True).token_ids
    assert (found := able(tmp_path)), row
    for ranks in found:
        for logits in in_threads(ranks, lambda rank: share(tmp_path, rank).model(TOKENS)):
            assert (logits - expected).abs().max() <= AGREES
    how = {"prompt_ids": PROMPT, "max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
    assert led(tmp_path, found[-1], lambda llm: llm.generate(**how).token_ids) == text
