"""Where the time of a model goes, part by part, against the roofline:

    python -m minillm.bench profile --weights PATH | --random SHAPE  [--prompt-tokens N] [--json] [--plot FILE.png]

Real prefills and decode steps at batch 1, with hooks around every module: a part's time is its own, without that of
the modules inside it, so that `attention` is what lies between its projections (rotation, cache, scores and sums) and
`layer` the residuals. What no part accounts for is the step's own: positions, rotary tables, the copies to and from
Python. Hooks cost time too, they wait for each part on a GPU, and a decode step with hooks is not a recorded one
(`engine/graphs.py`): both times are said. They are means over the faster half of the steps: unlike medians they add up.

The bytes of a part are its weights, as they are held, of experts those that the tokens choose if they choose evenly,
the activations that go in and come out, and for attention the cache. Its operations are those of its matrix products
and of attention's scores and sums. The last line of stdout is JSON; with `--json` nothing else is.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minillm import cli
from minillm.bench.hooks import Timer, part_of, watched
from minillm.bench.weights import checkpoint, scratch_folder
from minillm.engine import inference
from minillm.families.shared.shapes import SHAPES
from minillm.llm import LLM
from minillm.loading import load
from minillm.model.cache import Cache
from minillm.model.costs import active_values, attention_flops, cached_values_seen, state_bytes
from minillm.model.decoder import skeleton
from minillm.report import picture, roofline
from minillm.report.measure import copy_bandwidth, matrix_peak, synchronize

ROUNDS, STEPS = 5, 8
COLUMNS = ("part", "kind", "calls", "ms", "share", "MB", "GFLOP", "of copy", "of peak", "of roofline")


def computed_in(llm: LLM) -> torch.dtype:
    """What the hidden states and the cache are in."""
    return llm.model.dtype


def costs(llm: LLM, tokens: int, past: int) -> dict[str, tuple[float, float]]:
    """Bytes and operations of each part for `tokens` tokens behind `past` positions, without activations."""
    dtype = computed_in(llm)
    plain, real = skeleton(llm.spec, dtype), dict(llm.model.named_modules())
    together, each = active_values(plain, tokens), active_values(plain)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, module in plain.named_modules():
        cost, own = found[part_of(name)], dict(module.named_parameters(recurse=False))
        for leaf, parameter in own.items():
            key = f"{name}.{leaf}"
            cost[0] += held(real[name], leaf, own) * together[key] / parameter.numel()
            cost[1] += 2 * each[key] * tokens if parameter.dim() > 1 else 0
    table = found.pop("embedding")[0]  # of which a prompt looks up rows, which count as activations
    once = 2 * llm.spec.vocab_size * llm.spec.hidden_size  # for the last token alone
    found["head"] = [table if llm.spec.tied else found["head"][0], once]
    found["attention"][0] += cached_values_seen(llm.spec, past + tokens) * dtype.itemsize
    found["attention"][0] += state_bytes(llm.spec, dtype.itemsize)
    found["attention"][1] += attention_flops(llm.spec, tokens, past)
    return {part: (cost[0], cost[1]) for part, cost in found.items()}


def held(module: nn.Module, leaf: str, plain: Collection[str]) -> int:
    """Bytes of a parameter with what stands beside it where it is quantised, `plain` being all names that parameters of
    such a module have otherwise."""
    found = dict(module.named_parameters(recurse=False))
    return found[leaf].nbytes + sum(
        part.nbytes for name, part in found.items() if name.startswith(f"{leaf}_") and name not in plain
    )


Sample = tuple[float, Timer]  # the seconds of a step, and what the timer saw of it


def sampled(llm: LLM, prompt_tokens: int) -> dict[str, tuple[list[Sample], list[Sample]]]:
    """Of "decode" and "prefill" the samples taken without hooks, whose timers saw nothing, and those with hooks."""

    def now() -> float:
        synchronize(llm.device)
        return time.perf_counter()

    found: dict[str, tuple[list[Sample], list[Sample]]] = {"decode": ([], []), "prefill": ([], [])}
    torch.manual_seed(0)
    for turn in range(-2, 2 * ROUNDS):  # with and without in turn, the first of each to warm up
        prompt = torch.randint(llm.spec.vocab_size, (prompt_tokens,)).tolist()
        cache, token = Cache(llm.spec, 1, prompt_tokens + STEPS, computed_in(llm), llm.device), 0
        for step in range(1 + STEPS):
            timer, hooked = Timer(now), turn % 2
            with watched(llm.model, timer) if hooked else contextlib.nullcontext():
                began = now()
                if not step:
                    logits = inference.prefill(llm.model, [prompt], cache)
                elif hooked:  # module by module: a recorded step has none
                    logits = llm.model(torch.tensor([[token]], device=llm.device), cache)
                else:
                    logits = inference.decode(llm.model, [token], cache)
                token = int(logits.argmax())
                seconds = now() - began
            if turn >= 0:
                found["decode" if step else "prefill"][hooked].append((seconds, timer))
    return found


def faster_half(samples: list[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample[0])[: -(-len(samples) // 2)]


def summary(
    llm: LLM, plain: list[Sample], hooked: list[Sample], tokens: int, past: int, copy: float, peak: float
) -> dict[str, Any]:
    """Means, costs and shares of each part; the longest first. `tokens` at once behind `past` positions, `copy` in
    bytes and `peak` in operations per second."""
    known = costs(llm, tokens, past)
    parts: list[dict[str, Any]] = []
    modules = {part_of(name): type(module).__name__ for name, module in llm.model.named_modules()}
    best = faster_half(hooked)
    total = statistics.fmean(seconds for seconds, _ in best)
    for part, calls in best[0][1].calls.items():
        seconds = statistics.fmean(timer.seconds[part] for _, timer in best)
        weights, flops = known.get(part, (0.0, 0.0))
        nbytes = weights + best[0][1].activations[part]
        parts.append({
            "part": part, "kind": modules.get(part, "Linear"), "calls": calls, "seconds": seconds,
            "share": seconds / total, "bytes": round(nbytes), "flops": round(flops),
            "copy_share": nbytes / seconds / copy, "matrix_share": flops / seconds / peak,
            "roofline_share": max(nbytes / copy, flops / peak) / seconds,
        })  # fmt: skip
    return {
        "seconds": statistics.fmean(seconds for seconds, _ in faster_half(plain)),
        "seconds_with_hooks": total,
        "unaccounted_seconds": total - sum(each["seconds"] for each in parts),
        "bytes": sum(each["bytes"] for each in parts),
        "flops": sum(each["flops"] for each in parts),
        "parts": sorted(parts, key=lambda each: -each["seconds"]),
    }


def profile(llm: LLM, prompt_tokens: int) -> dict[str, Any]:
    dtype = computed_in(llm)
    copy, peak = copy_bandwidth(llm.device), matrix_peak(llm.device, dtype)
    if copy is None or peak is None:
        raise ValueError("no memory left to measure the machine with; try a smaller model")
    with torch.inference_mode():
        found = sampled(llm, prompt_tokens)
    return {
        "dtype": str(dtype).removeprefix("torch."), "device": str(llm.device), "threads": torch.get_num_threads(),
        "prompt": prompt_tokens, "copy_gb_s": copy / 1e9, "matrix_tflop_s": peak / 1e12,
        "decode": summary(llm, *found["decode"], 1, prompt_tokens + STEPS // 2, copy, peak),
        "prefill": summary(llm, *found["prefill"], prompt_tokens, 0, copy, peak),
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """In Markdown, the steps one after the other."""
    copy, peak = report["copy_gb_s"], report["matrix_tflop_s"]
    machine = f"{report['device']}, {report['threads']} threads"
    lines = [f"{machine}, copies {copy:.1f} GB/s, multiplies at {peak:.2f} TFLOP/s"]
    for kind, title in (("decode", "One decode step behind"), ("prefill", "A prefill of")):
        step = report[kind]
        bound = max(step["bytes"] / copy / 1e9, step["flops"] / peak / 1e12)
        took = f"{step['seconds'] * 1e3:.2f} ms, {step['seconds_with_hooks'] * 1e3:.2f} with hooks"
        lines += ["", f"{title} {report['prompt']} tokens: {took}; {bound * 1e3:.2f} is the roofline of the whole", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
        for each in step["parts"]:
            cells = [each["part"], each["kind"], str(each["calls"])]
            cells += [f"{each['seconds'] * 1e3:.2f}", f"{each['share']:.0%}"]
            cells += [f"{each['bytes'] / 1e6:.1f}", f"{each['flops'] / 1e9:.2f}"]
            cells += [f"{each[key]:.0%}" for key in ("copy_share", "matrix_share", "roofline_share")]
            lines.append("| " + " | ".join(cells) + " |")
        rest = step["unaccounted_seconds"]
        lines.append(f"| unaccounted | | | {rest * 1e3:.2f} | {rest / step['seconds_with_hooks']:.0%} | | | | | |")
    return "\n".join(lines)


def draw(path: Path, report: dict[str, Any]) -> None:
    """The parts of both steps that do operations, on the roofline."""
    rows = [
        {**each, "op": each["part"], "shape": kind}
        for kind in ("decode", "prefill")
        for each in report[kind]["parts"]
        if each["flops"] and each["bytes"]
    ]
    title = f"{report['shape']}, {report['dtype']}, {report['prompt']} tokens, {report['device']}"
    roofline.draw(path, rows, report["copy_gb_s"] * 1e9, report["matrix_tflop_s"] * 1e12, title)


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("bench profile", "Where the time of a model goes, against the roofline.")
    cli.add_model_arguments(parser)
    parser.add_argument("--random", metavar="SHAPE", choices=sorted(SHAPES), help=f"one of {', '.join(sorted(SHAPES))}")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--json", action="store_true", help="JSON only")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the roofline; needs '.[plot]'")
    arguments = parser.parse_args(argv)
    if arguments.weights and arguments.random:
        parser.error("--weights and --random exclude each other")
    if arguments.prompt_tokens < 1:
        parser.error("--prompt-tokens must be at least 1")
    if arguments.plot:
        picture.check(arguments.plot)
    with scratch_folder() as scratch:
        arguments.weights = folder = checkpoint(arguments.weights, arguments.random, scratch)
        llm = load(**cli.model_options(arguments), progress=cli.progress_bar("loading"))
    if arguments.prompt_tokens + STEPS > llm.spec.context:
        raise ValueError(f"--prompt-tokens {arguments.prompt_tokens} and {STEPS} more exceed {llm.spec.context}")
    report = {"shape": arguments.random or folder.name, **profile(llm, arguments.prompt_tokens)}
    if arguments.plot:
        draw(arguments.plot, report)
    if not arguments.json:
        print(f"{table(report)}\n")
    print(json.dumps(report))
    return 0
