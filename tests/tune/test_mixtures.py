"""A mixture whose experts and routers get adapters, trained step by step beside PEFT's on transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import minillm
from minillm.adapters.read import read
from minillm.tune.masking import Example
from minillm.tune.objectives import NextToken
from minillm.tune.optimizers import Optimizer, Update
from minillm.tune.packing import Batch, collated
from minillm.tune.training import Plan, Run, train
from tests.helpers import adapters

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
STEPS, RATE, BALANCE = 4, 1e-2, 0.3
EPS = 1e-2  # more than usual: else Adam makes of the rounding of a gradient near 0 a step of any size
APART = 2e-5  # of how far a tensor has moved; 4.2e-6 was seen


class Drawn:
    """A row of each step, of random tokens; the second half is learnt."""

    def __init__(self, vocabulary: int):
        rows = torch.randint(vocabulary, (STEPS, 24), generator=torch.Generator().manual_seed(2)).tolist()
        self.rows = [[Example(ids, [at >= 12 for at in range(24)], n)] for n, ids in enumerate(rows)]

    def __len__(self) -> int:
        return STEPS

    def batch(self, numbers: Sequence[int]) -> Batch:
        return collated([self.rows[number] for number in numbers])


@pytest.mark.parametrize("routes", [False, True])
@pytest.mark.parametrize("row", ["mixtral", "qwen3_moe"])
def test_steps_are_pefts(row: str, routes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where routers learn, with their loss for balance; elsewhere they stay as they are."""
    targets = [*EXPERTS, *(["mlp.gate.weight"] if routes else [])]
    theirs, folder = adapters.made(tmp_path, row, target_modules=["q_proj"], target_parameters=targets)
    llm = minillm.load(tmp_path, "float32", "cpu", "training")
    ours = read(llm, folder)
    for each in ours.parameters():
        each.requires_grad_(True)
    before = {name: each.clone() for name, each in llm.model.named_parameters()}
    monkeypatch.setattr("minillm.tune.packing.order", lambda count, *_: list(range(count)))
    rows, named, balance = Drawn(llm.spec.vocab_size), ours.named(), BALANCE if routes else 0.0
    plan, update = Plan(STEPS, 1, 1, clip=None), Optimizer(named, Update(eps=EPS))
    run = Run(llm.model, named, NextToken(balance), rows, plan, update, lambda step: RATE, torch.device("cpu"))
    losses = [taken.loss for taken in train(run)]
    learnt = [each for each in theirs.parameters() if each.requires_grad]
    optimizer, expected = torch.optim.AdamW(learnt, lr=RATE, eps=EPS, weight_decay=0), []
    theirs.train().base_model.model.router_aux_loss_coef = balance
    for step in range(STEPS):
        given = rows.batch([step])
        loss = theirs(input_ids=given.tokens_BT, labels=given.labels_BT, output_router_logits=routes).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=2e-6)
    assert all(torch.equal(each, before[name]) for name, each in llm.model.named_parameters() if "router" in name)
    ours.write(tmp_path / "ours", str(tmp_path))
    theirs.save_pretrained(tmp_path / "theirs")
    found, wanted = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("ours", "theirs"))
    assert found.keys() == wanted.keys()
    assert any("gate" in name for name in found if ".experts" not in name) == routes
    start = load_file(folder / "adapter_model.safetensors")
    apart = {name: (found[name] - each).norm() / (each - start[name]).norm() for name, each in wanted.items()}
    assert max(apart.values()) <= APART
