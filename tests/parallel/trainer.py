"""One of several processes that train: `python -m tests.parallel.trainer N FOLDER CASE…`, which leaves what it has
found in FOLDER/found.json and the trained values in FOLDER/CASE.safetensors. All cases are in one run, as starting
takes longer than they do."""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minillm.adapters.adapter import Adapter
from minillm.adapters.config import ALL, AdapterConfig
from minillm.hub import DEMO
from minillm.model.decoder import Decoder
from minillm.tune import learner, state
from minillm.tune.job import join
from minillm.tune.masking import Example
from minillm.tune.objectives import NextToken
from minillm.tune.optimizers import Optimizer, Update, rate_of
from minillm.tune.packing import Batch
from minillm.tune.split import Split
from minillm.tune.team import Ranked, Team
from minillm.tune.training import Plan, Run, Sequences, train
from tests.conftest import ROOT
from tests.parallel.forks import WAITS

CPU, BAD = torch.device("cpu"), 2  # the line whose loss is no number, in the last case


@dataclass(frozen=True)
class Case:
    """How a model is trained. Of 5 rows the second step of 4 has only one."""

    folder: Path = DEMO
    full: bool = False
    quantize: str | None = None
    recompute: bool = False
    dropout: float = 0.0
    steps: int = 3
    kind: Any = "adamw"
    eps: float = 1e-8


CASES = {
    "full": Case(full=True),
    "mixture": Case(ROOT / "examples/demo_moe", full=True, recompute=True),
    "adapter": Case(),
    "int4": Case(quantize="int4", recompute=True),
}
# Of processes that share every layer. Sums are in another order, and AdamW takes what rounding leaves of a gradient of
# zero for one: with `full`, gradients below `eps` count as little as they are.
SPLIT = {
    "full over layers": Case(full=True, eps=1e-6),
    "mixture over layers": Case(ROOT / "examples/demo_moe", full=True, recompute=True, eps=1e-6),
    "adapter over layers": CASES["adapter"],
}
GOES_ON = {"full": Case(full=True, steps=4, kind="adamw8bit"), "adapter": Case(dropout=0.2, steps=4)}


def examples(count: int, seed: int = 0) -> Sequences:
    """Drawn ids, of which the last are learnt: from each row another number."""
    draw, made = random.Random(seed), []
    for line in range(count):
        size = draw.randint(8, 60)
        made.append([Example([draw.randrange(768) for _ in range(size)], [at >= 5 for at in range(size)], line)])
    return Sequences(made)


class Broken(NextToken):
    def __call__(self, model: Decoder, batch: Batch) -> Tensor:
        return super().__call__(model, batch) * (float("nan") if BAD in batch.lines else 1)


def begun(case: Case, team: Team) -> Run:
    how = {"dtype": "float32", "device": CPU, "kernels": "training", "quantize": case.quantize}
    llm = team.load(path=case.folder, **how)
    llm.model.recomputes = case.recompute
    if case.full:
        learning = learner.whole(llm)
    else:
        adapter = team.attach(llm, AdapterConfig(4, 8, ALL, lora_dropout=case.dropout), 1)
        learning = learner.Learner(llm, adapter.named(), {}, adapter)
    named = team.share(llm.model, learning.named)
    plan, rate = Plan(case.steps, 4, 1, seed=3, every=2), rate_of("cosine", 1e-3, case.steps, 1, 0.1)
    optimizer = Optimizer(named, Update(case.kind, decay=0.01, eps=case.eps))
    return Run(llm.model, named, NextToken(), examples(5), plan, optimizer, rate, CPU, examples(3, 9), team=team)


def trained(case: Case, team: Team, folder: Path | None = None) -> tuple[list[list[Any]], dict[str, Tensor]]:
    """What was said of each step, and the values behind the last, which are kept in a folder too."""
    run = begun(case, team)
    said = [[each.loss, each.norm, each.evaluated] for each in train(run)]
    if folder is not None:
        folder.mkdir(exist_ok=True)
        state.save(folder, run.named, run.optimizer, run.progress, {}, team)
    whole = team.whole(run.model)
    values = dict(whole.named_parameters()) if case.full else getattr(team, "adapter", None) or run.named
    values = values.named() if isinstance(values, Adapter) else values
    return said, {name: each.detach() for name, each in values.items() if not each.is_meta}


def goes_on(case: Case, team: Team, folder: Path) -> list[Any]:
    """Of a run that is cut off behind its third step, of which only one process has kept its share: the step that all
    had kept, by how many losses it differs from one that is not, and by how many values."""
    folder.mkdir(exist_ok=True)
    whole = begun(case, team)
    losses = [each.loss for each in train(whole)]
    cut = begun(case, team)
    for taken in train(cut):
        if taken.step < 3:
            state.save(folder, cut.named, cut.optimizer, cut.progress, {}, team)
        elif team.leads:
            shutil.copy(folder / team.named(state.LAST, 2), folder / team.named(state.LAST, 3))
        if taken.step == 3:
            break
    on = begun(case, team)
    progress = state.restore(folder, on.named, on.optimizer, {}, team)
    assert progress is not None
    on.progress = progress
    step = progress.step
    again = [each.loss for each in train(on)]
    odd = sum(int((each != whole.named[name]).sum()) for name, each in on.named.items())
    return [step, sum(a != b for a, b in zip(losses[step:], again, strict=True)), team.total(odd)[0]]


def not_finite(team: Team) -> str:
    """What the process says that has the bad line; the others wait for it."""
    run = begun(Case(), team)
    run.objective = Broken()
    try:
        list(train(run))
    except ValueError as error:
        if "loss is nan" in str(error):
            team.total(0)
            return str(error)
    return ""


def main() -> None:
    folder = Path(sys.argv[2])
    team, _ = join(int(sys.argv[1]), CPU, WAITS)
    assert isinstance(team, Ranked)
    found: dict[str, Any] = {}
    with team.running():
        team.agreed("cases")  # as a command does: from here on the first lets the others go
        for name in sys.argv[3:]:
            way = Split(team.ranks) if name in SPLIT else team
            found[name], values = trained({**CASES, **SPLIT}[name], way, folder / f"{name} kept")
            if team.leads:
                save_file({key: each.contiguous() for key, each in values.items()}, folder / f"{name}.safetensors")
        for name, case in GOES_ON.items() if team.count == 2 else ():
            found[f"{name} goes on"] = goes_on(case, team, folder / name)
        if team.count == 2:
            found["split goes on"] = goes_on(GOES_ON["adapter"], Split(team.ranks), folder / "split")
        if said := not_finite(team):
            (folder / "said.txt").write_text(said)
        if team.leads:
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
