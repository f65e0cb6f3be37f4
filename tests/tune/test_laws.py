"""What must hold of training whatever the model: parts of a step add up, packing changes nothing, nor does computing
layers again, and a run that was cut off is the run that was not."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch

import minillm
from minillm.model.decoder import IGNORED, Decoder
from minillm.tune import state
from minillm.tune.masking import Example
from minillm.tune.objectives import NextToken
from minillm.tune.optimizers import Optimizer, Update, rate_of
from minillm.tune.packing import collated, packed, rows_of
from minillm.tune.training import Plan, Run, Sequences, Taken, evaluate, train

CPU = torch.device("cpu")


def examples(count: int, longest: int = 60, seed: int = 0) -> list[Example]:
    """Drawn ids, the second half of each learnt."""
    draw = random.Random(seed)
    made = []
    for line in range(count):
        size = draw.randint(4, longest)
        made.append(Example([draw.randrange(768) for _ in range(size)], [at >= size // 2 for at in range(size)], line))
    return made


@pytest.fixture(scope="module")
def loaded() -> Decoder:
    return minillm.load(dtype="float32", device="cpu", kernels="reference").model


@pytest.fixture
def model(loaded: Decoder) -> Decoder:
    return copy.deepcopy(loaded).requires_grad_(True)


def gradients(model: Decoder, batches: list[list[list[Example]]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a step in these batches."""
    objective, made = NextToken(), [collated(rows) for rows in batches]
    total, loss = sum(map(objective.count, made)), 0.0
    for batch in made:
        part = objective(model, batch) / total
        part.backward()
        loss += part.item()
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return loss, found


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest value of its gradient."""
    return max(float((a[name] - b[name]).abs().max() / b[name].abs().max()) for name in b)


def test_packed_rows_give_what_their_examples_give_alone(model: Decoder) -> None:
    some = examples(5)
    alone_loss, alone = gradients(model, [[[each]] for each in some])
    packed_loss, together = gradients(model, [[some]])
    assert packed_loss == pytest.approx(alone_loss, abs=3e-6)
    assert differ(together, alone) < 5e-6
    without = collated([some])
    assert without.starts_BT is not None
    loose = model.loss(without.tokens_BT, without.labels_BT).item()
    assert abs(loose - alone_loss) > 0.01  # examples that see each other are another task


def test_micro_batches_are_one_batch(model: Decoder) -> None:
    some = [[each] for each in examples(6)]
    whole_loss, whole = gradients(model, [some])
    parts_loss, parts = gradients(model, [some[:1], some[1:3], some[3:]])
    assert parts_loss == pytest.approx(whole_loss, abs=3e-6)
    assert differ(parts, whole) < 5e-6


def test_layers_that_are_computed_again_change_no_bit(model: Decoder) -> None:
    some = [[[each] for each in examples(3)]]
    plain_loss, plain = gradients(model, some)
    model.recomputes = True
    again_loss, again = gradients(model, some)
    assert again_loss == plain_loss
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_a_padded_row_is_the_row(model: Decoder) -> None:
    short, long = examples(1, 10)[0], examples(1, 60, seed=1)[0]
    both = collated([[short], [long]])
    assert both.labels_BT[0, len(short.ids) :].eq(IGNORED).all()
    _, together = gradients(model, [[[short], [long]]])
    _, alone = gradients(model, [[[short]], [[long]]])
    assert differ(together, alone) < 5e-6


@pytest.mark.parametrize("seed", range(5))
def test_packing_keeps_all_and_overfills_nothing(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 100) for _ in range(200)]
    rows = packed(lengths, 100)
    assert sorted(number for row in rows for number in row) == list(range(200))
    assert max(sum(lengths[number] for number in row) for row in rows) <= 100
    assert len(rows) <= 1.1 * sum(lengths) / 100 + 1  # best fit decreasing leaves little empty


def made_run(model: Decoder, kind: str = "adamw", steps: int = 6, **more: object) -> Run:
    some = examples(10)
    named = dict(model.named_parameters())
    parts = {name: [each.shape[0]] for name, each in named.items() if each.dim() == 2 and "embedding" not in name}
    optimizer = Optimizer(named, Update(kind, decay=0.01), parts)  # type: ignore[arg-type]
    plan = Plan(steps, batch=4, micro=2, seed=3, **more)  # type: ignore[arg-type]
    rate = rate_of("cosine", 1e-3, steps, 2, 0.1)
    return Run(model, named, NextToken(), Sequences([[each] for each in some]), plan, optimizer, rate, CPU)


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "muon"])
def test_a_run_that_goes_on_is_the_run_that_was_not_cut(loaded: Decoder, tmp_path: Path, kind: str) -> None:
    def fresh() -> Run:
        return made_run(copy.deepcopy(loaded).requires_grad_(True), kind)

    whole = fresh()
    steps = [taken.loss for taken in train(whole)]
    begun, taken = fresh(), list[Taken]()
    for each in train(begun):
        taken.append(each)
        if each.step == 4:  # in the second epoch
            state.save(tmp_path, begun.named, begun.optimizer, begun.progress, {"seed": 3})
            break
    on = fresh()
    found = state.restore(tmp_path, on.named, on.optimizer, {"seed": 3})
    assert found is not None
    on.progress = found
    taken += list(train(on))
    assert [each.loss for each in taken] == steps
    assert all(torch.equal(each, whole.named[name]) for name, each in on.named.items())


def test_what_was_asked_for_is_asked_for_again(model: Decoder, tmp_path: Path) -> None:
    run = made_run(model)
    assert state.restore(tmp_path, run.named, run.optimizer, {}) is None
    state.save(tmp_path, run.named, run.optimizer, run.progress, {"rate": 1e-3, "seed": 3})
    with pytest.raises(ValueError, match=r"had rate 0\.001, this one has 0\.002"):
        state.restore(tmp_path, run.named, run.optimizer, {"rate": 2e-3, "seed": 3})


def test_a_run_ends_when_nothing_gets_better(model: Decoder) -> None:
    run = made_run(model, steps=40, every=1, patience=3)
    run.rate = lambda step: 0.03  # too much: it gets worse
    run.held_out = Sequences([[each] for each in examples(4, seed=9)])
    taken = list(train(run))
    assert len(taken) < 40
    assert [each.best for each in taken[-3:]] == [False] * 3
    assert run.progress.best == min(each.evaluated for each in taken if each.evaluated is not None)
    assert evaluate(run, run.held_out) == taken[-1].evaluated


def test_a_loss_that_is_no_number_names_lines_and_module(model: Decoder) -> None:
    run = made_run(model)
    with torch.no_grad():
        model.layers[2].ffn.down.weight[5, 7] = float("nan")
    before = model.embedding.weight.clone()
    with pytest.raises(ValueError, match=r"step 1: the loss is nan on lines \d+, \d+, first in layers\.2\.ffn\.down"):
        next(train(run))
    assert torch.equal(model.embedding.weight, before)


def test_a_gradient_that_is_no_number_names_its_parameter(model: Decoder) -> None:
    run = made_run(model)
    model.layers[1].attention.out.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(ValueError, match=r"step 1: the gradients .* of layers\.1\.attention\.out\.weight and 0 more"):
        next(train(run))


def test_rows_of_many_examples_are_packed() -> None:
    some = examples(30)
    rows = rows_of(some, 128)
    assert len(rows) < len(rows_of(some, None)) == 30
