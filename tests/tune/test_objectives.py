"""What training lowers, against transformers: a teacher's distributions, and the balance of routers that learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import minillm
from minillm.adapters.attach import attach
from minillm.adapters.config import ALL, AdapterConfig
from minillm.tune.learner import Learner, whole
from minillm.tune.masking import Example
from minillm.tune.objectives import Distillation, NextToken
from minillm.tune.packing import Batch, collated
from tests.conftest import shared
from tests.helpers import tiny


def batch(vocabulary: int) -> Batch:
    """Rows of different lengths, the second half of each learnt."""
    draw = torch.Generator().manual_seed(2)
    rows = [torch.randint(vocabulary, (size,), generator=draw).tolist() for size in (24, 24, 24)]
    return collated([[Example(ids, [at >= 8 * n for at in range(len(ids))], n)] for n, ids in enumerate(rows, start=1)])


def test_a_teachers_distributions_are_learnt_as_transformers_has_them() -> None:
    """KL(teacher ‖ model) at what is learnt, and its gradients."""
    folders = [shared(f"checkpoints/{name}") for name in ("stories260K", "stories-phi3")]
    ours, teacher = (minillm.load(each, "float32", "cpu", "reference").model for each in folders)
    theirs, their_teacher = (tiny.reference(each) for each in folders)
    given, objective = batch(ours.spec.vocab_size), Distillation(teacher)
    ours.requires_grad_(True)
    loss = objective(ours, given)
    loss.backward()
    learnt = given.labels_BT[:, 1:] != -100
    q, p = (each(given.tokens_BT).logits[:, :-1][learnt].log_softmax(-1) for each in (theirs, their_teacher))
    wanted = F.kl_div(q, p.detach(), reduction="sum", log_target=True)
    wanted.backward()
    assert objective.count(given) == int(learnt.sum())
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    found, expected = ours.embedding.weight.grad, theirs.model.embed_tokens.weight.grad
    assert found is not None
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_routers_that_learn_are_kept_in_balance_as_transformers_does(tmp_path: Path) -> None:
    theirs = tiny.save(tmp_path, *tiny.ROWS["mixtral"])
    llm = minillm.load(tmp_path, "float32", "cpu", "reference")
    assert whole(llm).routes
    given = batch(llm.spec.vocab_size)
    objective = NextToken(balance=0.3)
    loss = objective(llm.model, given) / objective.count(given)
    loss.backward()
    theirs.router_aux_loss_coef = 0.3
    made = theirs(given.tokens_BT, labels=given.labels_BT, output_router_logits=True)
    made.loss.backward()
    assert loss.item() == pytest.approx(made.loss.item(), rel=1e-6)
    assert made.aux_loss > 1
    found = llm.model.layers[0].ffn.router.weight.grad
    expected = theirs.model.layers[0].mlp.gate.weight.grad
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("targets", "routes"), [(ALL, False), (["q_proj", "gate"], True)])
def test_routers_do_not_learn_unless_they_are_asked_for(targets: Any, routes: bool, tmp_path: Path) -> None:
    tiny.save(tmp_path, *tiny.ROWS["mixtral"])
    llm = minillm.load(tmp_path, "float32", "cpu", "reference")
    adapter = attach(llm, AdapterConfig(r=2, lora_alpha=4, target_modules=targets))
    assert any(".gate.lora_" in name for name in adapter.named()) == routes
    assert Learner(llm, adapter.named(), {}, adapter).routes == routes
    assert not any(each.requires_grad for each in llm.model.parameters())
