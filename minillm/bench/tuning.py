"""How long a step of LoRA training takes, and what memory, beside PEFT on transformers:

    python -m minillm.bench tune --random qwen2.5-0.5b --against peft --tokens 512

Both train an adapter of the same rank on all seven linear matrices of each layer, with AdamW and the same tokens, each
in a process of its own. Steps alternate; the first of each warms up. The memory is the most that a process has taken
since it loaded its model.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import cli, config, families
from minillm.adapters.attach import attach
from minillm.adapters.config import AdapterConfig
from minillm.bench.weights import checkpoint, scratch_folder
from minillm.families.shared.shapes import SHAPES
from minillm.loading import load
from minillm.ops.device import DTYPES
from minillm.report import reference
from minillm.report.measure import peak_memory

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RATE = 2e-4
CPU = torch.device("cpu")
Loss = Callable[[Tensor], Tensor]


def ours(folder: Path, dtype: str, rank: int) -> tuple[Loss, list[Tensor]]:
    """The loss of tokens `[B, T]`, and what learns."""
    llm = load(folder, dtype=dtype, kernels="training", device="cpu")
    adapter = attach(llm, AdapterConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))
    llm.model.train()
    return llm.model.loss, list(adapter.parameters())


def theirs(folder: Path, dtype: str, rank: int) -> tuple[Loss, list[Tensor]]:
    """The same in PEFT. Raises ValueError where it is not there."""
    try:
        import peft
    except ImportError:
        raise ValueError("--against peft needs peft: pip install -e '.[test]' in the clone") from None
    options: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    model: Any = peft.get_peft_model(reference.load(folder, dtype=DTYPES[dtype]), peft.LoraConfig(**options))
    model.train()
    return lambda tokens: model(input_ids=tokens, labels=tokens).loss, [
        p for p in model.parameters() if p.requires_grad
    ]


ENGINES = {"minillm": ours, "peft": theirs}


def _child(pipe: Connection, name: str, folder: Path, dtype: str, rank: int) -> None:
    """A process: of each step, for the tokens that come, it tells seconds and loss, and the most memory so far."""
    try:
        loss_of, learnt = ENGINES[name](folder, dtype, rank)
    except ValueError as error:
        return pipe.send(error)
    optimizer = torch.optim.AdamW(learnt, lr=RATE)
    pipe.send(sum(each.numel() for each in learnt))
    while (tokens := pipe.recv()) is not None:
        started = time.perf_counter()
        loss = loss_of(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pipe.send((time.perf_counter() - started, float(loss.detach()), peak_memory(CPU)))


def measured(folder: Path, engines: Sequence[str], arguments: Any) -> dict[str, Any]:
    """Medians of the seconds of a step and peaks of memory by engine. Raises ValueError where one cannot run."""
    context, vocabulary = multiprocessing.get_context("spawn"), families.resolve(config.read(folder))[0].vocab_size
    pipes, processes = {}, []
    try:
        for name in engines:
            pipes[name], other = context.Pipe()
            given = (other, name, folder, arguments.dtype, arguments.rank)
            processes.append(context.Process(target=_child, args=given, daemon=True))
            processes[-1].start()
            other.close()  # so that what comes of it ends where the process does
            if isinstance(said := pipes[name].recv(), ValueError):
                raise said
        draw = torch.Generator().manual_seed(0)
        rounds: dict[str, list[tuple[float, float, int]]] = {name: [] for name in engines}
        for turn in range(arguments.rounds + 1):
            tokens = torch.randint(vocabulary, (arguments.batch, arguments.tokens), generator=draw)
            for name in list(engines)[:: 1 if turn % 2 else -1]:
                pipes[name].send(tokens)
                rounds[name].append(pipes[name].recv())
        for pipe in pipes.values():
            pipe.send(None)
    except EOFError:
        raise ValueError("a process ended before its time, for lack of memory perhaps; take a smaller shape") from None
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return {
        name: {
            "step_s": statistics.median(seconds for seconds, _, _ in found[1:]),
            "steps_s": [seconds for seconds, _, _ in found[1:]],
            "losses": [loss for _, loss, _ in found],
            "peak_gb": found[-1][2] / 1e9,
        }
        for name, found in rounds.items()
    }


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("bench tune", "Measure a step of LoRA training on a CPU, beside PEFT's.")
    parser.add_argument("--weights", metavar="PATH", help=cli.WEIGHTS)
    parser.add_argument("--random", metavar="SHAPE", choices=sorted(SHAPES), help=f"one of {', '.join(sorted(SHAPES))}")
    parser.add_argument("--against", choices=("peft",), help="steps of this alternate with ours")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES), help="of the model; adapters are fp32")
    numbers = {"tokens": (512, "of a row"), "batch": (1, "rows of a step"), "rank": (16, "of the adapter")}
    for name, (value, what) in {**numbers, "rounds": (3, "steps that are timed")}.items():
        parser.add_argument(f"--{name}", metavar="N", type=int, default=value, help=f"{what} (default {value})")
    arguments = parser.parse_args(argv)
    if arguments.weights and arguments.random:
        parser.error("--weights and --random exclude each other")
    if min(arguments.tokens, arguments.batch, arguments.rank, arguments.rounds) < 1 or arguments.tokens < 2:
        parser.error("--batch, --rank and --rounds must be at least 1, --tokens at least 2")
    engines = ["minillm", *([arguments.against] if arguments.against else [])]
    with scratch_folder() as scratch:
        folder = checkpoint(arguments.weights, arguments.random, scratch)
        report = measured(folder, engines, arguments)
    for name, row in report.items():
        tokens = arguments.batch * arguments.tokens / row["step_s"]
        print(f"{name:8} {row['step_s']:7.2f} s a step, {tokens:6.1f} tok/s, {row['peak_gb']:5.2f} GB")
    if arguments.against:
        ratio = [report["minillm"][key] / report[arguments.against][key] for key in ("step_s", "peak_gb")]
        print(f"time {ratio[0]:.2f}, memory {ratio[1]:.2f} of {arguments.against}'s")
    print(f"\n{json.dumps(report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
