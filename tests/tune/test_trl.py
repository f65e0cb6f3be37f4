"""Training step by step as TRL and PEFT do it: what they gave is recorded (`tests/helpers/record_trl.py`)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import minillm
from minillm.adapters.adapter import Adapter
from minillm.adapters.attach import attach
from minillm.adapters.config import ALL, AdapterConfig
from minillm.tune.objectives import NextToken, Objective
from minillm.tune.optimizers import Optimizer, Update
from minillm.tune.packing import Batch
from minillm.tune.preference import LN2, Preference, log_probabilities
from minillm.tune.training import Plan, Run, Taken, train
from tests.helpers.record_trl import ALPHA, RANK, RECORDED, beginning


class Recorded:
    """The batches of a run, each a row."""

    def __init__(self, batches: list[dict[str, Any]], pairs: bool):
        self.batches, self.pairs = batches, pairs

    def __len__(self) -> int:
        return len(self.batches)

    def batch(self, numbers: Sequence[int]) -> Batch:
        (number,) = numbers
        given = self.batches[number]
        tokens = torch.tensor(given["input_ids"])
        if self.pairs:
            labels = torch.where(torch.tensor(given["completion_mask"]).bool(), tokens, -100)
        else:
            labels = torch.tensor(given["labels"])
        pairs = range(number * len(tokens) // 2, (number + 1) * len(tokens) // 2) if self.pairs else ()
        return Batch(tokens, labels, None, tokens >= 0, (number,), tuple(pairs))


def adapted() -> tuple[minillm.LLM, Adapter]:
    llm = minillm.load(dtype="float32", device="cpu", kernels="reference")
    adapter = attach(llm, AdapterConfig(RANK, ALPHA, ALL))
    with torch.no_grad():
        for name, each in adapter.named().items():
            each.copy_(beginning(name, each.shape))
    return llm, adapter


def trained(
    llm: minillm.LLM, adapter: Adapter, kept: dict[str, Any], objective: Objective, rows: Recorded, update: Update
) -> list[Taken]:
    """Our loop over the recorded batches, in their order."""
    micro = len(rows) // len(kept["steps"])
    plan, device = Plan(len(kept["steps"]), batch=micro, micro=1), torch.device("cpu")
    rates = [each["learning_rate"] for each in kept["steps"]]
    run = Run(
        llm.model, adapter.named(), objective, rows, plan, Optimizer(adapter.named(), update), rates.__getitem__, device
    )
    return list(train(run))


def compared(taken: list[Taken], kept: dict[str, Any], adapter: Adapter, name: str) -> None:
    for ours, theirs in zip(taken, kept["steps"], strict=True):
        assert ours.loss == pytest.approx(theirs["loss"], abs=1e-6)
        assert ours.norm == pytest.approx(theirs["grad_norm"], rel=1e-5)
    final = load_file(RECORDED / f"{name}.safetensors")
    assert final.keys() == adapter.named().keys()
    assert max(float((each.detach() - final[key]).abs().max()) for key, each in adapter.named().items()) < 1e-5


@pytest.fixture(autouse=True)
def _in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.tune.packing.order", lambda count, seed, epoch: list(range(count)))


def test_eight_steps_are_those_of_the_sft_trainer() -> None:
    kept = json.loads((RECORDED / "sft.json").read_text())
    llm, adapter = adapted()
    taken = trained(llm, adapter, kept, NextToken(), Recorded(kept["batches"], pairs=False), Update(decay=0.01))
    assert len(taken) == 8
    compared(taken, kept, adapter, "sft")


def test_four_steps_are_those_of_the_dpo_trainer() -> None:
    kept = json.loads((RECORDED / "dpo.json").read_text())
    llm, adapter = adapted()
    rows = Recorded(kept["batches"], pairs=True)
    with torch.no_grad():
        said = [log_probabilities(llm.model, rows.batch([number])).chunk(2) for number in range(len(rows))]
    before = torch.cat([torch.stack(each, dim=1) for each in said])
    taken = trained(llm, adapter, kept, Preference("dpo", 0.1, before), rows, Update())
    assert len(taken) == 4
    assert taken[0].loss == pytest.approx(LN2, abs=1e-6)
    compared(taken, kept, adapter, "dpo")


def test_the_loss_of_ipo_begins_at_its_target() -> None:
    """(0 - 1 / (2 beta))², policy and reference being the same."""
    kept = json.loads((RECORDED / "dpo.json").read_text())
    llm, _ = adapted()
    batch = Recorded(kept["batches"][:1], pairs=True).batch([0])
    with torch.no_grad():
        before = torch.stack(log_probabilities(llm.model, batch, mean=True).chunk(2), dim=1)
        assert math.isclose(float(Preference("ipo", 0.1, before)(llm.model, batch)) / 4, 25, rel_tol=1e-6)
