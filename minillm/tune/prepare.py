"""From what is asked for to what training takes: the data, the steps, the memory. Nothing is loaded yet."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minillm import cli, config, families, hub
from minillm.guard import files
from minillm.llm import LLM
from minillm.loading import asked_scheme, integers, opened
from minillm.model import held
from minillm.model.decoder import Decoder, skeleton
from minillm.ops.device import is_fast, resolve_device, stored_dtype
from minillm.parallel import launch, split
from minillm.tune import budget, learner, material, report, sharded
from minillm.tune.budget import Budget
from minillm.tune.material import Asked, Material
from minillm.tune.optimizers import Update
from minillm.tune.packing import steps_of
from minillm.tune.training import Plan

RATES = {"adapter": 2e-4, "full": 2e-5, "preference": 5e-6}
# What may differ between a run and the one that goes on with it.
FREE = ("output", "show", "device", "kernels", "micro_batch", "recompute", "every", "tensorboard",
        "ranks", "rank_timeout", "stages", "layers")  # fmt: skip


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
        rows, counts = (
            len(found.rows),
            "; ".join(f"{n:,} {what}" for what, n in found.counts.items() if what != "learnt"),
        )
        epochs = plan.steps / steps_of(rows, plan.batch)
        out = f", {len(found.held_out):,} held out" if found.held_out else ""
        lines = [
            f"data: {a.data}: {found.format}, {rows:,} rows{out}, {found.tokens:,} tokens, {found.learnt:,} of them "
            f"learnt, at most {found.longest:,} in a row" + (f" ({counts})" if counts else ""),
            f"steps: {plan.steps:,} of {plan.batch} rows, {plan.micro} at a time ({epochs:.2f} epochs); "
            f"{self.update.kind}, rate {self.peak:g}, {a.schedule}",
            f"memory{f' of each of {a.ranks} ranks' if a.ranks not in (None, 1) else ''}: {self.needed.words()}",
        ]
        return [*lines, *(f"example: {each}" for each in found.shown[:1])]

    def asked(self) -> dict[str, Any]:
        """What a run that goes on must have been asked for too."""
        kept = {key: str(v) if isinstance(v, Path) else v for key, v in vars(self.arguments).items() if key not in FREE}
        return {**kept, "data_sha256": hashlib.sha256(self.arguments.data.read_bytes()).hexdigest()}

    def held_out_sha256(self) -> str:
        """Of the file that --evaluation names; nothing where there is none."""
        file = self.arguments.evaluation
        return "" if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def prepare(arguments: argparse.Namespace) -> Prepared:
    """Read the data and say what training on it takes, for arguments that `check` has let through. Raises ValueError
    for whatever cannot be."""
    a = arguments
    folder = hub.resolve(a.weights, revision=a.revision)
    values, checkpoint = opened(folder, config.read(folder))
    spec, _, read = families.resolve(values)
    if a.ranks not in (None, 1) and not a.split:
        sharded.check(spec)
    device = resolve_device(a.device)
    stored = stored_dtype(a.dtype, read.dtype, checkpoint.dtype)
    dtype = torch.float32 if a.dtype == "auto" and not is_fast(stored, device) else stored
    sketch = skeleton(split.local(spec, a.ranks, 0) if a.split else spec, dtype)
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
    held_whole = checkpoint.nbytes // (a.ranks if a.split else 1) if integers(folder, values) else None
    needed = _needed(a, sketch, found, plan, update, held_whole)
    return Prepared(a, folder, found, plan, update, a.rate or RATES[kind], device, dtype, needed)


def check(a: argparse.Namespace) -> None:
    """Raises ValueError for flags that cannot be, or not together: before ranks are started, and files read."""
    least = dict.fromkeys(("rank", "steps", "batch", "micro_batch", "every", "patience", "show"), 1)
    least |= {"clip": 0, "decay": 0}
    for name in (*least, "epochs", "rate", "beta"):
        value, bound = getattr(a, name), least.get(name)
        if value is not None and (value <= 0 if bound is None else value < bound):
            must = "more than 0" if bound is None else f"at least {bound}"
            raise ValueError(f"--{name.replace('_', '-')} is {value}, it must be {must}")
    for name in ("warmup", "floor", "evaluation_share", "dropout"):
        if not 0 <= getattr(a, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(a, name)}, it must be at least 0 and less than 1")
    adapter = {"rank": 16, "alpha": None, "dropout": 0.0, "targets": None}
    idle = [f"--{name}" for name, default in adapter.items() if a.full and getattr(a, name) != default]
    idle += ["--quantize"] if a.full and a.quantize else []
    if idle:
        raise ValueError(f"{idle[0]} is of an adapter, and --full trains none; leave one of the two out")
    if a.bf16_weights and not a.full:
        raise ValueError("--bf16-weights is about weights that learn, and an adapter's are fp32; give --full too")
    if a.preference and (a.teacher or a.pack or a.dropout):
        raise ValueError("--preference goes with none of --teacher, --pack and --dropout; leave these out")
    if a.adapter:
        raise ValueError(
            f"--adapter {a.adapter}: a new one is trained; give the checkpoint merged with it as --weights"
        )
    if a.evaluation and a.evaluation_share:
        raise ValueError("--evaluation and --evaluation-share: give one of the two")
    if a.patience and not (a.evaluation or a.evaluation_share):
        raise ValueError("--patience looks at what is held out; give --evaluation-share 0.1 too")
    for flag, path in (("--data", a.data), ("--evaluation", a.evaluation)):
        if path is not None:
            files.text_file(flag, path)
    launch.options(a)
    if a.stages is not None or a.layers is not None:
        raise ValueError("--stages and --layers split a model that generates; training is over --ranks")
    if a.ranks not in (None, 1):
        _check_ranks(a)
    elif a.split:
        raise ValueError("--split needs several processes; give --ranks too")
    if a.tensorboard:
        report.check_board()
    if a.output is None and a.show is None:
        raise ValueError("--output is missing; name a folder for what is trained")


def _check_ranks(a: argparse.Namespace) -> None:
    alone = {"--preference": a.preference, "--teacher": a.teacher, "--show": a.show}
    if odd := next((flag for flag, value in alone.items() if value is not None), None):
        raise ValueError(f"{odd} works in one process only; leave --ranks out")
    if a.full and a.optimizer == "muon":
        raise ValueError("--optimizer muon with --full needs whole matrices, of which a rank has some rows; take adamw")
    if a.split and a.optimizer == "muon":
        raise ValueError("--optimizer muon with --split needs whole matrices, of which a rank has a part; take adamw")
    if not a.split and a.ranks > a.batch:
        raise ValueError(f"--ranks is {a.ranks}, and a step has {a.batch} rows, so some would have nothing to do; give "
                         "at most as many, a larger --batch, or --split")  # fmt: skip


def _needed(
    a: argparse.Namespace, sketch: Decoder, found: Material, plan: Plan, update: Update, quantised: int | None
) -> Budget:
    """Bytes; `quantised` are those of a checkpoint whose matrices stay as they are stored."""
    scheme = asked_scheme(a.quantize, a.group_size, not a.asymmetric)
    weights = quantised or budget.held_weights(sketch, held.integers(sketch, scheme) if scheme else {})
    weights += budget.dequantised(sketch) if quantised or scheme else 0
    spec, rows = sketch.spec, plan.micro * (2 if a.preference else 1)
    if a.full:
        values = sum(each.numel() for each in sketch.parameters())
        learning = budget.learning(values, sketch.dtype, update)
    else:
        values = learner.adapter_values(sketch, a.rank)
        learning = 4 * values + budget.learning(values, torch.float32, update)
    kept = budget.activations(spec, rows, found.longest, sketch.dtype.itemsize, a.recompute)
    needed = Budget(weights, learning, kept, budget.logits(spec, rows * found.longest))
    if a.ranks in (None, 1) or a.split:
        return needed
    return budget.over(a.ranks, sketch, needed, values if a.full else 0, bool(quantised or scheme))
