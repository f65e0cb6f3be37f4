"""Speed, against the machine's limits and against peers:

    python -m minillm.bench --weights PATH | --random llama-3.2-1b  [--against transformers,llama.cpp] [--plot FILE.png]
        [--prompt-tokens 128,512] [--context 8192] [--batch 1,8] [--dtypes bfloat16,float32] [--quantize none,int8,int4]
    python -m minillm.bench kernels     each Triton kernel, see `bench/kernels.py`
    python -m minillm.bench profile     where the time of a model goes, see `bench/profile.py`
    python -m minillm.bench throughput  many sequences at once, see `bench/throughput.py`
    python -m minillm.bench tower       a picture through what sees, see `bench/seeing.py`
    python -m minillm.bench serve       a server under load, see `bench/serving.py`
    python -m minillm.bench http        what the server costs beside the engine alone, see `bench/http.py`

Every combination of the lists is measured. Each engine has a process of its own, and they take turns round by round,
so that what else the machine does falls on all alike: quote the ratios. A round is one prefill of a prompt in each row
and some greedy decode steps, which start behind `--context` positions where those are more than the prompt
(`bench/engines.py` says how they come there). Figures are medians over all rounds but a first, which warms up. All
engines have the same weights and as many threads; llama.cpp's are written as GGUF, q8_0 beside int8 and q4_0 beside
int4, but a GGUF file given as --weights is read by both as it is: minillm makes of its blocks what --dtypes and
--quantize say, llama.cpp computes with the blocks. transformers, which quantises with other packages only, has rows for
unquantised weights alone. Load times are of files in the page cache, without imports; the peak is that of the process
while it loaded and while it ran. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minillm import cli, config, families
from minillm.bench import http, kernels, plot, profile, seeing, serving, throughput, tuning
from minillm.bench.engines import PEERS, Worker, check
from minillm.bench.report import Limits, Point, ratios, speeds, table
from minillm.bench.weights import checkpoint, gguf_bytes_per_step, scratch_folder, stored_bytes_per_step, write_gguf
from minillm.families.shared.shapes import SHAPES
from minillm.model.costs import bytes_per_step
from minillm.model.decoder import Decoder, skeleton
from minillm.ops.device import DTYPES, resolve_device
from minillm.report import picture
from minillm.report.measure import copy_bandwidth, matrix_peak
from minillm.weights.gguf import reader as gguf

QUANTIZATIONS = ("none", "int8", "int4")


def numbers(text: str) -> list[int]:
    """ "1,8" -> [1, 8]."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{min(found)} is less than 1")
    return list(dict.fromkeys(found))


def points(arguments: argparse.Namespace) -> list[Point]:
    """All combinations of sizes; a context within the prompt is the prompt."""
    sizes = itertools.product(arguments.batch, arguments.prompt_tokens, arguments.context)
    return list(dict.fromkeys(Point(batch, prompt, max(prompt, context)) for batch, prompt, context in sizes))


def sweep(arguments: argparse.Namespace, folder: Path, scratch: Path) -> dict[str, Any]:
    """Everything that was asked for, of the checkpoint in `folder`; files are written to `scratch`."""
    spec, _, _ = families.resolve(config.read(folder))
    if gguf.is_one(folder) and "transformers" in arguments.against:
        raise ValueError(f"{folder}: transformers does not read this GGUF file as it is; leave it out of --against")
    most = max(point.context for point in points(arguments)) + arguments.new_tokens
    if most > spec.context:
        raise ValueError(
            f"{most} positions with the new tokens, but the model is meant for {spec.context}; ask for less"
        )
    device = resolve_device(arguments.device)
    peaks = [matrix_peak(device, DTYPES[name]) or 0.0 for name in arguments.dtypes]
    limits = Limits(copy_bandwidth(device), max(peaks) or None)
    report: dict[str, Any] = {"rows": [], "ratios": []}
    kinds = list(itertools.product(arguments.dtypes, arguments.quantize))
    total = len(kinds) * len(points(arguments)) * (arguments.rounds + 1)
    with tqdm(total=total, unit="round", leave=False, disable=not sys.stderr.isatty()) as bar:
        for dtype, quantize in kinds:
            model = skeleton(spec, DTYPES[dtype])
            bar.set_description(f"loading {dtype} {quantize}")
            with running(arguments, folder, scratch, model, dtype, quantize) as workers:
                for point in points(arguments):
                    shared = {"shape": arguments.random or folder.name, "dtype": dtype, "quantize": quantize}
                    shared |= point._asdict()
                    measured = measure(workers, model, point, arguments, limits, bar)
                    report["rows"] += [{"engine": name, **shared, **row} for name, row in measured[0].items()]
                    report["ratios"] += [{**shared, **ratio} for ratio in measured[1]]
                report["threads"] = workers[0].facts["threads"]
    copy, matrix = limits
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {**report, "copy_gb_s": copy and copy / 1e9, "matrix_tflop_s": matrix and matrix / 1e12, "device": name}


@contextlib.contextmanager
def running(
    arguments: argparse.Namespace, folder: Path, scratch: Path, model: Decoder, dtype: str, quantize: str
) -> Iterator[list[Worker]]:
    """minillm's process and those of the peers, loaded one after the other; ended when the block is left."""
    peers = [peer for peer in arguments.against if quantize == "none" or peer != "transformers"]
    settings: dict[str, Any] = {"weights": str(folder), "dtype": dtype, "quantize": quantize}
    settings |= {name: getattr(arguments, name) for name in ("device", "kernels", "keep_quantized")}
    workers: list[Worker] = []
    file, kind = scratch / "model.gguf", dtype if quantize == "none" else quantize
    given = gguf.is_one(folder)
    try:
        if "llama.cpp" in peers and not given:
            write_gguf(file, folder, kind)
        for name in ["minillm", *peers]:
            if name == "llama.cpp":
                device = str(resolve_device(arguments.device))
                settings = {
                    "weights": str(folder if given else file),
                    "threads": workers[0].facts["threads"],
                    "device": device,
                }
            workers.append(Worker(name, settings, arguments.llama_python or sys.executable))
        for worker in workers[1:]:
            if worker.name != "llama.cpp":
                worker.facts["bytes_per_step"] = bytes_per_step(model)
            elif given:
                worker.facts["bytes_per_step"] = stored_bytes_per_step(folder, model)
            else:
                worker.facts["bytes_per_step"] = gguf_bytes_per_step(model, config.read(folder), kind)
        yield workers
    finally:
        for worker in workers:
            worker.kill()
        file.unlink(missing_ok=True)


def measure(
    workers: Sequence[Worker], model: Decoder, point: Point, arguments: argparse.Namespace, limits: Limits, bar: tqdm
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The rows of one point by engine, and minillm's ratios to its peers."""
    steps = arguments.new_tokens
    for worker in workers:
        bar.set_description(f"{worker.name}: {point.context} positions")
        worker.start(**point._asdict(), steps=steps)
    torch.manual_seed(0)
    rounds: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
    for turn in range(arguments.rounds + 1):
        # Other prompts each time, as users have: with experts they make products of other sizes.
        prompts = torch.randint(model.spec.vocab_size, (point.batch, point.prompt)).tolist()
        first = turn % len(workers)
        for worker in [*workers[first:], *workers[:first]]:
            bar.set_description(f"{worker.name}: batch {point.batch}, {point.prompt} + {steps} tokens")
            answer = worker.round(prompts, steps)
            if turn:  # the first round warms up
                rounds[worker.name].append(answer)
        bar.update()
    rows = {}
    for worker in workers:
        rows[worker.name] = {
            **speeds(model, point, rounds[worker.name], worker.facts, limits),
            "load_s": worker.facts["load_s"],
            "peak_rss_gb": worker.peak and worker.peak / 1e9,
        }
    return rows, list(ratios(rounds, rows))


def parser() -> argparse.ArgumentParser:
    made = cli.parser("bench", "Measure speed against the machine's limits and against peers.")
    made.add_argument("--weights", metavar="PATH", help=cli.WEIGHTS)
    made.add_argument("--random", metavar="SHAPE", choices=sorted(SHAPES), help=f"one of {', '.join(sorted(SHAPES))}")
    made.add_argument("--prompt-tokens", type=numbers, default=[128], metavar="N,…")
    made.add_argument("--context", type=numbers, default=[1], metavar="N,…", help="positions in the cache at first")
    made.add_argument("--batch", type=numbers, default=[1], metavar="N,…")
    made.add_argument("--dtypes", type=cli.some_of(tuple(DTYPES)), default=["bfloat16"], metavar="NAME,…")
    made.add_argument("--quantize", type=cli.some_of(QUANTIZATIONS), default=["none"], metavar="NAME,…")
    made.add_argument("--against", type=cli.some_of(PEERS), default=[], metavar="PEER,…", help=" and ".join(PEERS))
    made.add_argument("--llama-python", metavar="PATH", help="an interpreter with llama-cpp-python (default: this one)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--kernels", default="auto", choices=("auto", "reference", "triton"))
    cli.add_dequantize(made)
    made.add_argument("--new-tokens", type=int, default=16, metavar="N")
    made.add_argument("--rounds", type=int, default=5, metavar="N")
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw decode and prefill; needs '.[plot]'")
    return made


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    modes = {"kernels": kernels, "profile": profile, "throughput": throughput}
    modes |= {"serve": serving, "http": http, "tune": tuning, "tower": seeing}
    if given[:1] and given[0] in modes:
        return modes[given[0]].main(given[1:])
    made = parser()
    arguments = made.parse_args(given)
    if arguments.weights and arguments.random:
        made.error("--weights and --random exclude each other")
    if min(arguments.new_tokens, arguments.rounds) < 1:
        made.error("--new-tokens and --rounds must be at least 1")
    if arguments.llama_python and "llama.cpp" not in arguments.against:
        made.error("--llama-python means nothing without --against llama.cpp")
    if arguments.against == ["transformers"] and "none" not in arguments.quantize:
        made.error("--against transformers compares unquantised weights; add none to --quantize")
    check(arguments.against, arguments.llama_python or sys.executable)
    if arguments.plot:
        picture.check(arguments.plot)
    with scratch_folder() as scratch:
        report = sweep(arguments, checkpoint(arguments.weights, arguments.random, scratch), scratch)
    if arguments.plot:
        plot.draw(arguments.plot, report)
    print(f"{table(report)}\n\n{json.dumps(report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
