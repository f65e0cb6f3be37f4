"""Training step by step as TRL and PEFT do it: what they gave is recorded (`tests/helpers/record_trl.py`)."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
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
from tests.conftest import ROOT
from tests.helpers.record_trl import ALPHA, GRPO, RANK, RECORDED, beginning, even

sys.path.insert(0, str(ROOT / "examples"))
from grpo import Answers, Group, Round, advantages, log_p, made


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
    llm: minillm.LLM,
    adapter: Adapter,
    kept: dict[str, Any],
    objective: Objective,
    rows: Recorded | Said,
    update: Update,
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
        assert ours.loss == pytest.approx(theirs["loss"], rel=1e-6, abs=1e-6)
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


@pytest.mark.parametrize(("kind", "first"), [("dpo", LN2), ("ipo", 25.0)])
def test_four_steps_are_those_of_the_dpo_trainer(kind: Any, first: float) -> None:
    """Which begin, policy and reference being the same, at ln 2, and at (0 - 1 / (2 beta))²."""
    kept = json.loads((RECORDED / f"{kind}.json").read_text())
    llm, adapter = adapted()
    rows = Recorded(kept["batches"], pairs=True)
    with torch.no_grad():
        said = [
            log_probabilities(llm.model, rows.batch([number]), kind == "ipo").chunk(2) for number in range(len(rows))
        ]
    before = torch.cat([torch.stack(each, dim=1) for each in said])
    taken = trained(llm, adapter, kept, Preference(kind, 0.1, before), rows, Update())
    assert len(taken) == 4
    assert taken[0].loss == pytest.approx(first, rel=1e-6)
    compared(taken, kept, adapter, kind)


def unpadded(given: dict[str, Any], part: str, row: int) -> list[int]:
    both = zip(given[f"{part}_ids"][row], given[f"{part}_mask"][row], strict=True)
    return [i for i, real in both if real]


class Said:
    """The answers of a recorded batch as the example has them, with what the model says of them before each pair of
    steps."""

    def __init__(self, llm: minillm.LLM, adapter: Adapter, batches: list[dict[str, Any]]):
        self.llm, self.adapter, self.batches = llm, adapter, batches
        self.rounds: dict[int, Round] = {}

    def __len__(self) -> int:
        return len(self.batches)

    def batch(self, numbers: Sequence[int]) -> Batch:
        (number,) = numbers
        begun = number - number % GRPO["num_iterations"]
        if number == begun:
            self.rounds[begun] = self.round(self.batches[begun])
        return self.rounds[begun].batch(range(8))

    def round(self, given: dict[str, Any]) -> Round:
        rows = []
        for row in range(8):
            asked, said = (unpadded(given, part, row) for part in ("prompt", "completion"))
            rows.append(SimpleNamespace(prompt_token_ids=asked, token_ids=said))
        return made(self.llm, self.adapter, rows, given["advantages"])  # type: ignore[arg-type]


def test_four_steps_are_those_of_the_grpo_trainer() -> None:
    """Two rounds of answers that TRL drew, each gone through twice, so that ratios are not 1 and the clip counts."""
    kept = json.loads((RECORDED / "grpo.json").read_text())
    llm, adapter = adapted()
    rows = Said(llm, adapter, kept["batches"])
    taken = trained(llm, adapter, kept, Group(GRPO["epsilon"], GRPO["beta"]), rows, Update(eps=GRPO["adam_epsilon"]))
    compared(taken, kept, adapter, "grpo")
    for number, found in rows.rounds.items():
        for name, ours in (("old_per_token_logps", found.before), ("ref_per_token_logps", found.first)):
            for theirs, each, answer in zip(kept["batches"][number][name], ours, found.answers, strict=True):
                said = each[torch.tensor(answer.learnt[1:])]
                torch.testing.assert_close(said, torch.tensor(theirs[: len(said)]), rtol=0, atol=2e-5)


def test_how_good_answers_are_is_as_trl_has_it() -> None:
    for given in json.loads((RECORDED / "grpo.json").read_text())["batches"][::2]:
        prompts = [str(each) for each in given["prompt_ids"]]
        order = sorted(range(8), key=lambda row: prompts[row])  # TRL shuffles its groups
        assert sorted(Counter(prompts).values()) == [4, 4]
        rewards = [even(unpadded(given, "completion", row)) for row in order]
        wanted = [given["advantages"][row] for row in order]
        assert advantages(rewards, 4) == pytest.approx(wanted, abs=1e-5)


def test_gains_are_clipped() -> None:
    """Beyond 1 ± clip a good answer gains nothing more and has no gradient, nor does a bad one lose more."""
    llm, _ = adapted()
    batch = Recorded(json.loads((RECORDED / "sft.json").read_text())["batches"][:1], pairs=False).batch([0])
    with torch.no_grad():
        now = log_p(llm.model, batch)
    for good, ratio, clipped in ((1.0, 1.5, 1.2), (-1.0, 0.5, 0.8), (1.0, 0.5, 0.5), (-1.0, 1.5, 1.5)):
        given = Answers(batch.tokens_BT, batch.labels_BT, None, batch.real_BT, (0,), (),
                        torch.full((len(now),), good), now - torch.tensor(ratio).log(), now)  # fmt: skip
        group = Group(0.2, 0.0)
        for each in llm.model.parameters():
            each.requires_grad_(True)
        loss = group(llm.model, given) / group.count(given)
        assert loss.item() == pytest.approx(-good * clipped, rel=1e-5)
        loss.backward()
        gradient = llm.model.layers[0].attention.out.weight.grad
        assert gradient is not None
        assert bool(gradient.any()) is (ratio == clipped)
        llm.model.zero_grad()
