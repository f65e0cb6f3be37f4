"""Many sequences of many lengths at once: new tokens per second in all, as nano-vllm and vLLM report it.

    python -m minillm.bench throughput --random qwen3-0.6b     256 prompts of 100 to 1024 random tokens, and as many new

Prompts wait for a place in the batch, and whatever ends makes room. New tokens are drawn at temperature 0.6 and no
token ends a sequence, so that there are as many as were drawn for it. One short run goes before the clock starts. The
last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from minillm import cli
from minillm.bench.weights import checkpoint, scratch_folder
from minillm.engine.completion import Completion, Timings
from minillm.engine.sampling import Sampling
from minillm.families.shared.shapes import SHAPES
from minillm.llm import LLM
from minillm.loading import load
from minillm.report.measure import peak_memory

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


def measure(llm: LLM, rows: Sequence[Completion], max_batch: int) -> dict[str, Any]:
    """Run the requests to their ends."""
    timings, total = Timings(), sum(row.max_new_tokens for row in rows)
    began = time.perf_counter()
    with tqdm(total=total, unit="tok", leave=False, disable=not sys.stderr.isatty()) as bar:
        for _ in llm.run(rows, timings, max_batch=max_batch):
            bar.update()
    seconds = time.perf_counter() - began
    prompt = sum(len(row.prompt) for row in rows)
    return {
        "sequences": len(rows), "max_batch": max_batch, "prompt_tokens": prompt, "new_tokens": total,
        "seconds": seconds, "new_tok_s": total / seconds, "all_tok_s": (prompt + total) / seconds,
        "prompt_seconds": timings.prompt_seconds, "decode_seconds": timings.decode_seconds,
        "rows_per_step": timings.decode_tokens / max(timings.decode_steps, 1),
        "peak_memory_gb": peak_memory(llm.device) / 1e9,
    }  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = cli.parser("bench throughput", "New tokens per second of many sequences at once.")
    cli.add_model_arguments(made)
    made.add_argument("--random", metavar="SHAPE", choices=sorted(SHAPES), help=f"one of {', '.join(sorted(SHAPES))}")
    made.add_argument("--sequences", type=int, default=256, metavar="N")
    made.add_argument("--max-batch", type=int, metavar="N", help="sequences at a time (default: all)")
    made.add_argument("--least", type=int, default=100, metavar="N", help="tokens of a prompt, and new ones, at least")
    made.add_argument("--most", type=int, default=1024, metavar="N", help="and at most")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    return made


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.weights and arguments.random:
        made.error("--weights and --random exclude each other")
    if min(arguments.sequences, arguments.max_batch or 1) < 1 or not 1 <= arguments.least <= arguments.most:
        made.error("--sequences and --max-batch must be at least 1, and 1 <= --least <= --most")
    with scratch_folder() as scratch:
        arguments.weights = checkpoint(arguments.weights, arguments.random, scratch)
        name = arguments.random or arguments.weights.name
        llm = load(**cli.model_options(arguments), progress=cli.progress_bar("loading"))
    if 2 * arguments.most > llm.spec.context:
        raise ValueError(
            f"--most {arguments.most} is as many new tokens again, but the model is meant for {llm.spec.context}"
        )
    size = arguments.max_batch or arguments.sequences
    measure(llm, drawn(llm, min(size, 4), 8, 8, arguments.seed + 1), size)
    rows = drawn(llm, arguments.sequences, arguments.least, arguments.most, arguments.seed)
    report = {"shape": name, "device": str(llm.device), **measure(llm, rows, size)}
    print(
        f"{name} on {llm.device}: {report['sequences']} sequences, {report['prompt_tokens']} + "
        f"{report['new_tokens']} tokens in {report['seconds']:.1f} s: {report['new_tok_s']:.0f} new tok/s, "
        f"{report['rows_per_step']:.1f} sequences a step\n\n{json.dumps(report)}"
    )
    return 0
