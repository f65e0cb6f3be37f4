"""A run, in the order in which it is done: the model, what learns, the steps, and what is written."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from minillm import cli, config, families
from minillm.adapters.config import ALL, AdapterConfig
from minillm.guard.files import is_there
from minillm.guard.screen import note, printable, release
from minillm.guard.writing import asked_to_stop
from minillm.llm import LLM
from minillm.loading import load
from minillm.ops import Kernels
from minillm.parallel import launch
from minillm.parallel.follow import begun
from minillm.parallel.ranks import TIMEOUT, Ranks
from minillm.report.measure import peak_memory
from minillm.tune import budget, learner, report, state
from minillm.tune.budget import size
from minillm.tune.learner import Learner
from minillm.tune.objectives import Distillation, NextToken, Objective
from minillm.tune.optimizers import Optimizer, rate_of
from minillm.tune.preference import LN2, ROUNDING, Preference, first_words
from minillm.tune.prepare import Prepared
from minillm.tune.sharded import Sharded
from minillm.tune.split import Split
from minillm.tune.team import ALONE, Team
from minillm.tune.training import Pairs, Plan, Run, Sequences, Taken, train

LINES = 20  # about steps, where no terminal shows each
ANSWER = 64  # tokens of the answer that is generated at the end


def run(prepared: Prepared) -> int:
    """Load, train and write; returns an exit code. Raises ValueError for what cannot be."""
    a, output = prepared.arguments, Path(prepared.arguments.output)
    _refuse_other(output)
    team, device = join(a.ranks, prepared.device, a.rank_timeout, a.split)
    for line in prepared.told() if team.leads else ():
        print(printable(line), file=sys.stderr)
    with team.running():
        budget.refuse(prepared.needed, device, team.here)
        asked = {**cli.model_options(a), "device": device, "kernels": _kernels(a)}
        del asked["adapter"]  # which `check` has refused
        llm = team.load(cli.progress_bar("loading") if team.leads else lambda done, total: None, **asked)
        team.agreed(f"{prepared.asked()} {prepared.held_out_sha256()} {begun(llm.model, str(llm.values))}")
        return _trained(prepared, llm, team)


def join(
    count: int | None, device: torch.device, timeout: float | None, split: bool = False
) -> tuple[Team, torch.device]:
    """The processes that this one trains with, and its device. Raises ValueError if a launcher did not start them."""
    ranks, device = launch.join(count or 1, device, TIMEOUT if timeout is None else timeout)
    if not isinstance(ranks, Ranks):
        return ALONE, device
    return Split(ranks) if split else Sharded(ranks), device


def _trained(prepared: Prepared, llm: LLM, team: Team) -> int:
    a, output = prepared.arguments, Path(prepared.arguments.output)
    learning = _learner(llm, a, team)
    described = learning.described()
    made = _run(prepared, llm, learning, team)
    output.mkdir(parents=True, exist_ok=True)
    if (progress := state.restore(output, made.named, made.optimizer, prepared.asked(), team)) is not None:
        note(f"going on behind step {progress.step:,} of {made.plan.steps:,}")
        made.progress = progress
    release()  # what there is to note, before hours of steps and not behind them
    log = report.Log(output, made.progress.step, a.tensorboard) if team.leads else None
    if log is not None:
        print(f"training {described}", file=sys.stderr)
    with asked_to_stop() as stopped:
        for taken in train(made):
            if log is not None:
                log.add(taken)
                _say(taken, made, log)
            if taken.best:
                state.save_best(output, made.named, made.progress, team)
            ends = team.total(len(stopped))[0] > 0  # for all behind the same step
            if ends or taken.evaluated is not None or (made.plan.every and taken.step % made.plan.every == 0):
                state.save(output, made.named, made.optimizer, made.progress, prepared.asked(), team)
            if ends:
                if team.leads:
                    said = f"stopped behind step {taken.step:,}, which is saved; the same command goes on"
                    print(f"\n{said}", file=sys.stderr)
                return cli.EXIT_INTERRUPTED
    state.save(output, made.named, made.optimizer, made.progress, prepared.asked(), team)
    state.take_best(output, made.named, team)
    whole = team.whole(llm.model)
    if log is not None:
        learning.write(output, str(a.weights or llm.folder), whole)
        _finish(prepared, made, llm, described, log)
    return 0


def _kernels(a: argparse.Namespace) -> Kernels:
    """Of "auto" not the loops that are compiled meanwhile, which would change what a run gives."""
    return "training" if a.kernels == "auto" else a.kernels


def _refuse_other(output: Path) -> None:
    """Raise ValueError for a place that holds anything but a run."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: is there and is no folder; choose another")
    known = is_there(output / report.LOG) if output.is_dir() else True
    if not known and any(output.iterdir()):
        raise ValueError(f"--output {output}: is there and holds something else; remove it or choose another")


def _learner(llm: LLM, a: argparse.Namespace, team: Team) -> Learner:
    if a.full:
        return learner.whole(llm)
    targets = ALL if a.targets is None else a.targets.split(",")
    alpha = 2 * a.rank if a.alpha is None else a.alpha
    adapter = team.attach(llm, AdapterConfig(a.rank, alpha, targets, lora_dropout=a.dropout), a.seed)
    return Learner(llm, adapter.named(), {name: [each.shape[0]] for name, each in adapter.named().items()}, adapter)


def _run(prepared: Prepared, llm: LLM, learning: Learner, team: Team) -> Run:
    a, plan, rows, held_out = prepared.arguments, prepared.plan, prepared.material.rows, prepared.material.held_out
    llm.model.recomputes, judge = a.recompute, None
    if a.preference:
        objective: Objective = _preference(a, llm, rows, plan)
        judge = None if held_out is None else _preference(a, llm, held_out, plan)
    else:
        objective = _objective(prepared, llm, learning)
    named = team.share(llm.model, learning.named)
    optimizer = Optimizer(named, prepared.update, learning.parts)
    rate = rate_of(a.schedule, prepared.peak, plan.steps, round(a.warmup * plan.steps), a.floor)
    told = (llm.device, held_out, judge)
    return Run(llm.model, named, objective, rows, plan, optimizer, rate, *told, team=team)


def _objective(prepared: Prepared, llm: LLM, learning: Learner) -> Objective:
    a = prepared.arguments
    if a.teacher:
        teacher = load(a.teacher, a.dtype, a.device, _kernels(a))
        sizes = [each.spec.vocab_size for each in (llm, teacher)]
        words = [each.tokenizer and each.tokenizer.encode("The 3 owls, 日本; naïve?") for each in (llm, teacher)]
        if sizes[0] != sizes[1] or words[0] != words[1]:
            raise ValueError(f"--teacher {a.teacher}: another vocabulary (of {sizes[1]:,} tokens, this model's has "
                             f"{sizes[0]:,}); take a teacher of the same family")  # fmt: skip
        return Distillation(teacher.model)
    coefficient = float(families.resolve(config.read(prepared.folder))[2].values.get("router_aux_loss_coef") or 0)
    if coefficient and not learning.routes:
        note("the routers stay as they are, and so their loss for balance (router_aux_loss_coef) is left out")
    return NextToken(coefficient if learning.routes else 0.0)


def _preference(a: argparse.Namespace, llm: LLM, rows: Any, plan: Plan) -> Preference:
    assert isinstance(rows, Pairs)
    return Preference(a.preference, a.beta, first_words(llm.model, rows.pairs, a.preference, plan.micro, llm.device))


def _say(taken: Taken, run: Run, log: report.Log) -> None:
    """A step in a line: each on a terminal, where it takes the place of the one before, else some of them."""
    steps, shown = run.plan.steps, sys.stderr.isatty()
    due = taken.step in (1, steps) or taken.step % max(steps // LINES, 1) == 0 or taken.evaluated is not None
    if not (shown or due):
        return
    times = sorted(each["seconds"] for each in log.lines[-LINES:])
    left = time.strftime("%H:%M:%S", time.gmtime(times[len(times) // 2] * (steps - taken.step)))
    memory = size(peak_memory(run.device))
    judged = "" if taken.evaluated is None else f", held out {taken.evaluated:.4f}{' (best)' if taken.best else ''}"
    line = (
        f"step {taken.step:,}/{steps:,}: {run.objective.name} {taken.loss:.4f}{judged}, gradient {taken.norm:.2f}, "
        f"rate {taken.rate:.2e}, {taken.tokens / taken.seconds:,.0f} tok/s, {memory}, {left} left"
    )
    print(f"\r\x1b[K{line}" if shown else line, end="\n" if not shown or due else "", file=sys.stderr, flush=True)
    if taken.step == 1 and run.objective.name == "dpo" and abs(taken.loss - LN2) > ROUNDING:
        note(f"the first loss is {taken.loss:.6f} and not ln 2: the model is not the one that spoke before training")


def _finish(prepared: Prepared, run: Run, llm: LLM, described: str, log: report.Log) -> None:
    """Write the report, say what there is, and let a model that one process has answer once."""
    a, output, progress = prepared.arguments, Path(prepared.arguments.output), run.progress
    run.model.eval()
    told = {
        "weights": a.weights or "the built-in demo", "data": a.data, "trained": described,
        "steps": f"{progress.step:,}", "tokens": f"{progress.tokens:,}", "memory": prepared.needed.words(),
        "most memory": size(peak_memory(run.device)),
    }  # fmt: skip
    if math.isfinite(progress.best):
        told["best"] = f"{progress.best:.4f} on what is held out, behind step {progress.best_step:,}"
    report.write(output, f"tuning {llm.folder.name}", log, told, prepared.material.shown)
    use = "--weights" if a.full else f"--weights {a.weights} --adapter" if a.weights else "--adapter"
    print(printable(f"{output}: {described}, behind {progress.step:,} steps; try it with {use} {output}"))
    if isinstance(run.rows, Sequences) and run.team.count == 1:
        _answer(llm, run.rows)


def _answer(llm: LLM, rows: Sequences) -> None:
    """What the model now says to the first example, and whether it stops."""
    example = rows.rows[0][0]
    prompt = example.ids[: max(example.learnt.index(True), 1)]
    with torch.no_grad():
        result = llm.generate(prompt_ids=prompt, max_new_tokens=ANSWER, stop_token_ids=sorted(llm.turn_ids))
    assert not isinstance(result, list)
    said = printable(result.text)
    print(
        f"line {example.line} is now answered, {'to its end' if result.finish_reason == 'stop' else 'so far'}: {said}"
    )
