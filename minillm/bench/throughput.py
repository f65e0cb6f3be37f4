"""Many sequences of many lengths at once: new tokens per second in all, as nano-vllm and vLLM report it.

    python -m minillm.bench throughput --random qwen3-0.6b     256 prompts of 100 to 1024 random tokens, and as many new
                                                    [--against vllm,llama.cpp --vllm-python PATH --llama-python PATH]

Prompts wait for a place in the batch, and whatever ends makes room. New tokens are drawn at temperature 0.6 and no
token ends a sequence, so that there are as many as were drawn for it. One short run goes before the clock starts. The
last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minillm import cli
from minillm.bench import blocks, crowd
from minillm.bench.blocks import Watch
from minillm.bench.serving import spread
from minillm.bench.weights import checkpoint, scratch_folder, write_gguf
from minillm.engine.batching.engine import Engine
from minillm.engine.batching.room import BUDGET, bytes_for, counts, nbytes, positions_in, room_for
from minillm.engine.completion import Completion, Timings
from minillm.engine.sampling import Sampling
from minillm.families.shared.shapes import SHAPES
from minillm.llm import LLM
from minillm.loading import load
from minillm.report import picture
from minillm.report.measure import peak_memory
from minillm.weights.gguf import reader as gguf

TEMPERATURE = 0.6


def drawn(llm: LLM, sequences: int, least: int, most: int, seed: int) -> list[Completion]:
    """Requests of `least` to `most` prompt tokens and as many new ones, the same for the same seed."""
    made = random.Random(seed)
    return [
        Completion(
            [made.randrange(llm.spec.vocab_size) for _ in range(made.randint(least, most))],
            Sampling(temperature=TEMPERATURE, seed=made.getrandbits(62)),
            max_new_tokens=made.randint(least, most),
        )
        for _ in range(sequences)
    ]


def measure(llm: LLM, rows: Sequence[Completion], max_batch: int, memory: float | None = None) -> dict[str, Any]:
    """Run the requests to their ends, with `memory` for keys and values (default: for all that can be under way)."""
    timings, total = Timings(), sum(row.max_new_tokens for row in rows)
    positions = room_for(llm.model, rows, max_batch)
    if memory is not None:
        positions = min(positions, positions_in(llm.model, bytes_for(llm.model, memory), max_batch, BUDGET))
    engine = Engine(llm.model, positions, max_batch, timings=timings)
    for row in rows:
        engine.check(row)
    requests, watch = [engine.add(row) for row in rows], Watch(engine)
    arrived: dict[int, list[float]] = {each.number: [] for each in requests}
    began = time.perf_counter()
    with tqdm(total=total, unit="tok", leave=False, disable=not sys.stderr.isatty()) as bar:
        while engine.busy:
            found = engine.step()
            if error := next((request.error for request, _ in found if request.error), None):
                raise ValueError(error)
            watch.look()
            bar.update(len(found))
            for request, _ in found:
                arrived[request.number].append(time.perf_counter() - began)
    seconds = time.perf_counter() - began
    prompt = sum(len(row.prompt) for row in rows)
    return {
        "sequences": len(rows), "max_batch": max_batch, "prompt_tokens": prompt, "new_tokens": total,
        "seconds": seconds, "new_tok_s": total / seconds, "all_tok_s": (prompt + total) / seconds,
        "prompt_seconds": timings.prompt_seconds, "decode_seconds": timings.decode_seconds,
        "rows_per_step": timings.decode_tokens / max(timings.decode_steps, 1),
        "peak_memory_gb": peak_memory(llm.device) / 1e9,
        "cache_gb": nbytes(llm.model, counts(llm.model, positions, max_batch, BUDGET)) / 1e9,
        "preempted": sum(each.preempted for each in requests), "cached_tokens": sum(each.cached for each in requests),
        **delays(list(arrived.values())), "watch": watch,
    }  # fmt: skip


def delays(times: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    """Of requests whose tokens came at these seconds."""
    return {
        "first_token_s": spread([each[0] for each in times]),
        "between_tokens_s": spread([b - a for each in times for a, b in itertools.pairwise(each)]),
    }


def parser() -> argparse.ArgumentParser:
    made = cli.parser("bench throughput", "New tokens per second of many sequences at once.")
    cli.add_model_arguments(made)
    made.add_argument("--random", metavar="SHAPE", choices=sorted(SHAPES), help=f"one of {', '.join(sorted(SHAPES))}")
    made.add_argument("--sequences", type=int, default=256, metavar="N")
    made.add_argument("--max-batch", type=int, metavar="N", help="sequences at a time (default: all)")
    made.add_argument("--least", type=int, default=100, metavar="N", help="tokens of a prompt, and new ones, at least")
    made.add_argument("--most", type=int, default=1024, metavar="N", help="and at most")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument("--cache-memory", type=float, metavar="SHARE|BYTES", help="of keys and values (default: for all)")
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw who has which share of the cache")
    made.add_argument(
        "--against", type=cli.some_of(crowd.PEERS), default=[], metavar="PEER,…", help=", ".join(crowd.PEERS)
    )
    made.add_argument("--vllm-python", metavar="PATH", default=sys.executable, help="an interpreter that has vllm")
    made.add_argument("--llama-python", metavar="PATH", default=sys.executable, help="one that has llama-cpp-python")
    return made


def peers(
    arguments: argparse.Namespace, rows: Sequence[Completion], scratch: Path, room: int, dtype: str
) -> dict[str, Any]:
    """What the peers do with the same requests, one after the other, with so many bytes for keys and values."""
    found = {}
    for peer in arguments.against:
        print(f"running {peer}", file=sys.stderr)
        weights = arguments.weights
        if peer == "llama.cpp" and not gguf.is_one(weights):
            weights = scratch / "model.gguf"
            write_gguf(weights, arguments.weights, dtype)
        settings = {
            "engine": peer, "weights": str(weights), "rows": [(row.prompt, row.max_new_tokens) for row in rows],
            "most": arguments.max_batch or len(rows), "threads": torch.get_num_threads(),
            "dtype": dtype, "bytes": room,
        }  # fmt: skip
        answer = crowd.measured(python_of(arguments, peer), settings)
        new = sum(map(len, answer["times"]))
        found[peer] = {"seconds": answer["seconds"], "new_tok_s": new / answer["seconds"], **delays(answer["times"])}
    return found


def python_of(arguments: argparse.Namespace, peer: str) -> str:
    return arguments.vllm_python if peer == "vllm" else arguments.llama_python


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.weights and arguments.random:
        made.error("--weights and --random exclude each other")
    if min(arguments.sequences, arguments.max_batch or 1) < 1 or not 1 <= arguments.least <= arguments.most:
        made.error("--sequences and --max-batch must be at least 1, and 1 <= --least <= --most")
    if arguments.plot is not None:
        picture.check(arguments.plot)
    if arguments.against and arguments.quantize:
        made.error("--against compares weights as they are stored; leave out --quantize")
    for peer in arguments.against:
        crowd.check(peer, python_of(arguments, peer))
    with scratch_folder() as scratch:
        arguments.weights = checkpoint(arguments.weights, arguments.random, scratch)
        report = run(arguments, scratch)
    steps = f"{report['rows_per_step']:.1f} sequences a step"
    ratios = [f"{report['new_tok_s'] / each['new_tok_s']:.2f} times {peer}" for peer, each in report["peers"].items()]
    print(
        f"{report['shape']} on {report['device']}: {report['sequences']} sequences, {report['prompt_tokens']} + "
        f"{report['new_tokens']} tokens in {report['seconds']:.1f} s: {report['new_tok_s']:.0f} new tok/s, "
        f"{', '.join([steps, *ratios])}\n\n{json.dumps(report)}"
    )
    return 0


def run(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The requests through minillm, then through the peers."""
    name = arguments.random or arguments.weights.name
    llm = load(**cli.model_options(arguments), progress=cli.progress_bar("loading"))
    if 2 * arguments.most > llm.spec.context:
        raise ValueError(
            f"--most {arguments.most} is as many new tokens again, but the model is meant for {llm.spec.context}"
        )
    size = arguments.max_batch or arguments.sequences
    measure(llm, drawn(llm, min(size, 4), 8, 8, arguments.seed + 1), size)
    rows = drawn(llm, arguments.sequences, arguments.least, arguments.most, arguments.seed)
    report = {"shape": name, "device": str(llm.device), **measure(llm, rows, size, arguments.cache_memory)}
    watch = report.pop("watch")
    if arguments.plot is not None:
        blocks.draw(arguments.plot, watch, rows, f"{picture.plain(name)}: the cache of {len(rows)} requests")
    dtype = str(llm.model.dtype).removeprefix("torch.")
    return {**report, "peers": peers(arguments, rows, scratch, round(report["cache_gb"] * 1e9), dtype)}
