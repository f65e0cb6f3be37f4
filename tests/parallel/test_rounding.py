"""What a split adds to the error of half precision: each rank rounds its part before the sum, which is in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import minillm
from minillm.hub import DEMO
from tests.helpers import tiny
from tests.parallel.threads import in_threads, share

INPUTS = torch.randint(0, 90, (24, 48), generator=torch.Generator().manual_seed(3))
WORSE = 1.5  # times the error of one process, on average over the inputs, as for any other way of computing
HOW = {"device": "cpu", "kernels": "reference"}


@pytest.mark.parametrize("row", ["demo", "llama", "phi3", "gemma2", "deepseek_v3"])
@torch.no_grad()
def test_a_split_rounds_as_one_process_does(row: str, tmp_path: Path) -> None:
    folder = DEMO if row == "demo" else tmp_path
    if row != "demo":
        tiny.save(tmp_path, *tiny.ROWS[row])
    exact = minillm.load(folder, dtype="float32", **HOW).model(INPUTS)

    def error(logits: torch.Tensor) -> float:
        """Of each input the largest of all its logits; their mean."""
        return float((logits.float() - exact).abs().flatten(1).amax(1).mean())

    one = error(minillm.load(folder, dtype="bfloat16", **HOW).model(INPUTS))
    for ranks in (2, 4):
        found = in_threads(ranks, lambda rank: share(folder, rank, dtype="bfloat16").model(INPUTS))
        assert all(torch.equal(each, found[0]) for each in found)
        print(f"{row} over {ranks} ranks: {error(found[0]) / one:.2f} times the error of one process")
        assert error(found[0]) <= WORSE * one
