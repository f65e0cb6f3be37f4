"""From what is asked for to a run, in the order in which it is done: what the data is, what it takes, the model, what
learns, the steps, and what is written."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from minillm import cli, config, families, hub, ops
from minillm.guard.files import is_there
from minillm.guard.screen import note
from minillm.llm import LLM
from minillm.loading import asked_scheme, integers, is_fast, load, opened, resolve_device, stored_dtype
from minillm.model import held
from minillm.model.decoder import Decoder, skeleton
from minillm.report.measure import peak_memory
from minillm.tune import budget, learner, material, report, state
from minillm.tune.budget import Budget, size
from minillm.tune.learner import Learner
from minillm.tune.material import Asked, Material
from minillm.tune.objectives import Distillation, NextToken, Objective
from minillm.tune.optimizers import Optimizer, Update, rate_of
from minillm.tune.packing import steps_of
from minillm.tune.preference import LN2, ROUNDING, Preference, first_words
from minillm.tune.training import Pairs, Plan, Run, Taken, train

RATES = {"adapter": 2e-4, "full": 2e-5, "preference": 5e-6}
SAID = 20  # lines about steps where no terminal shows each
ANSWER = 64  # tokens of the one that is generated at the end
# What may differ between a run and the one that goes on with it.
FREE = ("output", "show", "device", "kernels", "micro_batch", "recompute", "every")


@dataclass(frozen=True)
class Prepared:
    """All that is known before the model is loaded."""

    arguments: argparse.Namespace
    folder: Path
    material: Material
    plan: Plan
    update: Update
    peak: float
    device: torch.device
    dtype: torch.dtype
    needed: Budget

    def told(self) -> list[str]:
        """What is to be done, in lines."""
        found, plan, a = self.material, self.plan, self.arguments
        rows, counts = len(found.rows), "; ".join(f"{n:,} {what}" for what, n in found.counts.items() if what != "learnt")
        per_epoch = steps_of(rows, plan.batch)
        out = f", {len(found.held_out):,} held out" if found.held_out else ""
        lines = [
            f"data: {a.data}: {found.format}, {rows:,} rows{out}, {found.tokens:,} tokens, {found.learnt:,} of them "
            f"learnt, at most {found.longest:,} in a row" + (f" ({counts})" if counts else ""),
            f"steps: {plan.steps:,} of {plan.batch} rows, {plan.micro} at a time ({plan.steps / per_epoch:.2f} epochs); "
            f"{self.update.kind}, rate {self.peak:g}, {a.schedule}",
            f"memory: {self.needed.words()}",
        ]
        return [*lines, *(f"example: {each}" for each in found.shown[:1])]

    def asked(self) -> dict[str, Any]:
        """What a run that goes on must have been asked for too."""
        kept = {key: str(v) if isinstance(v, Path) else v for key, v in vars(self.arguments).items() if key not in FREE}
        with open(self.arguments.data, "rb") as file:
            return {**kept, "data_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def prepare(arguments: argparse.Namespace) -> Prepared:
    """Read the data and say what training on it takes. Raises ValueError for whatever cannot be."""
    a = arguments
    _check(a)
    folder = hub.resolve(a.weights, revision=a.revision)
    values, checkpoint = opened(folder, config.read(folder))
    spec, _, read = families.resolve(values)
    device = resolve_device(a.device)
    stored = stored_dtype(a.dtype, read.dtype, checkpoint.dtype)
    dtype = torch.float32 if a.dtype == "auto" and not is_fast(stored, device) else stored
    sketch = skeleton(spec, dtype)
    most = min(material.MAX_LENGTH, spec.context) if a.max_length is None else a.max_length
    if not 2 <= most <= spec.context:
        raise ValueError(f"--max-length is {most}, this model takes from 2 to {spec.context}")
    asked = Asked(a.data, a.evaluation, a.evaluation_share, most, a.truncate, a.pack, bool(a.preference), a.seed)
    show = 1 if a.show is None else a.show
    found = material.gather(LLM(folder, values, sketch, device), asked, show, a.show is not None and cli.colourful())
    epoch = steps_of(len(found.rows), a.batch)
    steps = max(round(a.epochs * epoch), 1) if a.steps is None else a.steps
    every = max(steps // 10, 1) if a.every is None else a.every
    plan = Plan(steps, a.batch, a.micro_batch, a.seed, a.clip or None, every, a.patience)
    update = Update(a.optimizer, decay=a.decay, stochastic=a.bf16_weights)
    kind = "preference" if a.preference else "full" if a.full else "adapter"
    needed = _needed(a, sketch, found, plan, update, checkpoint.nbytes if integers(folder, values) else None)
    return Prepared(a, folder, found, plan, update, a.rate or RATES[kind], device, dtype, needed)


def _check(a: argparse.Namespace) -> None:
    whole = {"rank": 1, "epochs": 0, "steps": 1, "batch": 1, "micro_batch": 1, "every": 1, "patience": 1, "show": 1}
    for name, least in whole.items():
        value = getattr(a, name)
        if value is not None and (value < least or value == 0):
            raise ValueError(f"--{name.replace('_', '-')} is {value}, it must be {'more than' if not least else 'at least'} {least}")
    for name in ("warmup", "floor", "evaluation_share", "dropout"):
        if not 0 <= getattr(a, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(a, name)}, it must be at least 0 and less than 1")
    for name in ("rate", "beta", "clip", "decay"):
        value = getattr(a, name)
        if value is not None and (value < 0 or (value == 0 and name in ("rate", "beta"))):
            raise ValueError(f"--{name} is {value}, it must be a positive number")
    adapter = {"rank": 16, "alpha": None, "dropout": 0.0, "targets": None}
    idle = [f"--{name}" for name, default in adapter.items() if a.full and getattr(a, name) != default]
    idle += ["--quantize"] if a.full and a.quantize else []
    if idle:
        raise ValueError(f"{idle[0]} is of an adapter, and --full trains none; leave one of the two out")
    if a.bf16_weights and not a.full:
        raise ValueError("--bf16-weights is about weights that learn, and an adapter's are fp32; give --full too")
    if a.preference and (a.teacher or a.pack or a.dropout):
        raise ValueError("--preference goes with none of --teacher, --pack and --dropout; leave these out")
    if a.evaluation and a.evaluation_share:
        raise ValueError("--evaluation and --evaluation-share: give one of the two")
    if a.patience and not (a.evaluation or a.evaluation_share):
        raise ValueError("--patience looks at what is held out; give --evaluation-share 0.1 too")
    if a.output is None and a.show is None:
        raise ValueError("--output is missing; name a folder for what is trained")


def _needed(
    a: argparse.Namespace, sketch: Decoder, found: Material, plan: Plan, update: Update, quantised: int | None
) -> Budget:
    """Bytes; `quantised` are those of a checkpoint whose matrices stay as they are stored."""
    scheme = asked_scheme(a.quantize, a.group_size, not a.asymmetric)
    weights = quantised or budget.held_weights(sketch, held.integers(sketch, scheme) if scheme else {})
    spec, rows = sketch.spec, plan.micro * (2 if a.preference else 1)
    if a.full:
        values = sum(each.numel() for each in sketch.parameters())
        learning = budget.learning(values, sketch.dtype, update)
    else:
        values = learner.adapter_values(sketch, a.rank)
        learning = 4 * values + budget.learning(values, torch.float32, update)
    kept = budget.activations(spec, rows, found.longest, sketch.dtype.itemsize, a.recompute)
    return Budget(weights, learning, kept, budget.logits(spec, rows * found.longest))


def run(prepared: Prepared) -> int:
    """Load, train and write; returns an exit code."""
    a, output = prepared.arguments, Path(prepared.arguments.output)
    _room_for(output)
    budget.refuse(prepared.needed, prepared.device)
    kernels = "reference" if a.kernels == "auto" and prepared.device.type == "cpu" else a.kernels
    options = {**cli.model_options(a), "kernels": kernels, "progress": cli.progress_bar("loading")}
    llm = load(**options)
    learning = _learner(llm, a)
    made = _run(prepared, llm, learning)
    output.mkdir(parents=True, exist_ok=True)
    made.progress = state.restore(output, learning.named, made.optimizer, prepared.asked()) or made.progress
    if made.progress.step:
        note(f"going on behind step {made.progress.step:,} of {made.plan.steps:,}")
    print(f"training {learning.described()}", file=sys.stderr)
    log, ended = report.Log(output, made.progress.step), _steps(prepared, made, report.Log(output, made.progress.step))
    if not ended:
        print(f"stopped behind step {made.progress.step:,}, which is saved; the same command goes on", file=sys.stderr)
        return cli.EXIT_INTERRUPTED
    _finish(prepared, made, learning, report.Log(output, made.progress.step) if not log.lines else log)
    return 0


def _room_for(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: is there and is no folder; choose another")
    if output.is_dir() and any(output.iterdir()) and not (is_there(output / state.LAST) or is_there(output / report.LOG)):
        raise ValueError(f"--output {output}: is there and holds something else; remove it or choose another")


def _learner(llm: LLM, a: argparse.Namespace) -> Learner:
    if a.full:
        return learner.whole(llm)
    raise ValueError("only --full")


def _run(prepared: Prepared, llm: LLM, learning: Learner) -> Run:
    a, plan, rows, held_out = prepared.arguments, prepared.plan, prepared.material.rows, prepared.material.held_out
    llm.model.recomputes = a.recompute
    objective, judge = _objective(prepared, llm, learning), None
    if a.preference:
        objective = _preference(a, llm, rows, plan)
        judge = None if held_out is None else _preference(a, llm, held_out, plan)
    optimizer = Optimizer(learning.named, prepared.update, learning.parts)
    rate = rate_of(a.schedule, prepared.peak, plan.steps, round(a.warmup * plan.steps), a.floor)
    return Run(llm.model, learning.named, objective, rows, plan, optimizer, rate, llm.device, held_out, judge)


def _objective(prepared: Prepared, llm: LLM, learning: Learner) -> Objective:
    a = prepared.arguments
    if a.teacher:
        teacher = load(a.teacher, a.dtype, a.device, kernels="reference" if llm.device.type == "cpu" else a.kernels)
        sizes = [each.spec.vocab_size for each in (llm, teacher)]
        words = [each.tokenizer and each.tokenizer.encode("The 3 owls, 日本; naïve?") for each in (llm, teacher)]
        if sizes[0] != sizes[1] or words[0] != words[1]:
            raise ValueError(f"--teacher {a.teacher}: another vocabulary ({sizes[1]:,} tokens, this model has "
                             f"{sizes[0]:,}); take a teacher of the same family")  # fmt: skip
        return Distillation(teacher.model)
    coefficient = float(families.resolve(config.read(prepared.folder))[2].values.get("router_aux_loss_coef") or 0)
    if coefficient and not learning.routes:
        note("the routers stay as they are, and so their loss for balance (router_aux_loss_coef) is left out")
    return NextToken(coefficient if learning.routes else 0.0)


def _preference(a: argparse.Namespace, llm: LLM, rows: Any, plan: Plan) -> Preference:
    assert isinstance(rows, Pairs)
    before = first_words(llm.model, rows.pairs, a.preference, plan.micro, llm.device)
    return Preference(a.preference, a.beta, before)
