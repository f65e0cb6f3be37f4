"""Speed, against the machine's limit and against a peer:

    python -m minillm.bench --weights PATH | --random llama-3.2-1b  [--against transformers]

Each engine has a process of its own, and they take turns round by round, so that what else the machine does falls on
both alike: quote the ratios. A round is one prefill of the prompt and some decode steps at batch 1, greedy; figures are
medians over all rounds. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from minillm import bench_kernels, cli, families, hub, inference
from minillm.cache import Cache
from minillm.families.shapes import SHAPES
from minillm.loading import load, resolve_device
from minillm.measure import copy_bandwidth, peak_memory, synchronize
from minillm.model import skeleton
from minillm.weights.save import save

# An engine is two functions, prefill(prompt, steps) -> (state, token) and decode(state, token) -> (state, token), and
# facts about itself: device, dtype, and what the report needs.
Engine = tuple[Callable[[list[int], int], tuple[Any, int]], Callable[[Any, int], tuple[Any, int]], dict[str, Any]]


def minillm_engine(arguments: argparse.Namespace) -> Engine:
    chosen = (arguments.dtype, arguments.device, arguments.kernels)
    llm = load(arguments.weights, *chosen, keep_quantized=arguments.keep_quantized)
    dtype = llm.model.embedding.weight.dtype

    def prefill(prompt: list[int], steps: int) -> tuple[Cache, int]:
        cache = Cache(llm.spec, 1, len(prompt) + steps, dtype, llm.device)
        return cache, int(inference.prefill(llm.model, [prompt], cache).argmax())

    def decode(cache: Cache, token: int) -> tuple[Cache, int]:
        return cache, int(inference.decode(llm.model, [token], cache).argmax())

    facts = {"vocab_size": llm.spec.vocab_size, "bytes_per_step": llm.bytes_per_step}
    return prefill, decode, {**facts, "device": str(llm.device), "dtype": str(dtype)}


def transformers_engine(arguments: argparse.Namespace) -> Engine:
    """The peer as it comes, for one sequence: forward calls and an arg max, without the cost of its `generate`."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ValueError("--against transformers needs the package transformers; install minillm[test]") from None
    device = resolve_device(arguments.device)
    model = AutoModelForCausalLM.from_pretrained(arguments.weights, dtype=arguments.dtype).eval()
    model.to(device)

    def forward(ids: list[int], past: Any) -> tuple[Any, int]:
        tokens = torch.tensor([ids], device=device)
        out = model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
        return out.past_key_values, int(out.logits[0, -1].argmax())

    facts = {"device": str(device), "dtype": str(model.dtype)}
    return lambda prompt, steps: forward(prompt, None), lambda past, token: forward([token], past), facts


ENGINES = {"minillm": minillm_engine, "transformers": transformers_engine}


@torch.inference_mode()
def timed_round(engine: Engine, prompt: list[int], steps: int) -> dict[str, Any]:
    """One prefill and `steps` decode steps: the seconds of each, and the most memory held so far."""
    prefill, decode, facts = engine
    device = torch.device(facts["device"])

    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    times = [now()]
    state, token = prefill(prompt, steps)
    times.append(now())
    for _ in range(steps):
        state, token = decode(state, token)
        times.append(now())
    first, *others = (after - before for before, after in itertools.pairwise(times))
    return {"prefill": first, "decode": others, "peak_bytes": peak_memory(device)}


def work(arguments: argparse.Namespace) -> int:
    """The body of an engine's process: a JSON line once loaded, then one for each prompt that comes in on stdin."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not mix with the answers
    started = time.perf_counter()
    engine = ENGINES[arguments.worker](arguments)
    loaded = {"load_seconds": time.perf_counter() - started, "peak_load_bytes": peak_memory(torch.device("cpu"))}
    print(json.dumps({**engine[-1], **loaded}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(timed_round(engine, json.loads(line), arguments.new_tokens)), file=answers, flush=True)
    return 0


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start one process per engine, let them take turns, and reduce their times to medians and ratios."""
    names = ["minillm"] + ([arguments.against] if arguments.against else [])
    workers = {}
    for name in names:
        command = [sys.executable, "-m", "minillm.bench", "--worker", name, "--weights", str(arguments.weights)]
        for flag in ("dtype", "device", "kernels", "new_tokens"):
            command += [f"--{flag.replace('_', '-')}", str(getattr(arguments, flag))]
        command += ["--keep-quantized"] * (arguments.keep_quantized and name == "minillm")
        workers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        facts = {name: _answer(worker, name) for name, worker in workers.items()}
        torch.manual_seed(0)
        rounds: dict[str, list[Any]] = {name: [] for name in names}
        for turn in range(arguments.rounds + 1):
            # Another prompt each time, as users have: with experts it makes products of other sizes.
            prompt = torch.randint(facts["minillm"]["vocab_size"], (arguments.prompt_tokens,)).tolist()
            for name, worker in workers.items():
                assert worker.stdin is not None
                print(json.dumps(prompt), file=worker.stdin, flush=True)
                answer = _answer(worker, name)
                if turn:  # the first round warms up
                    rounds[name].append(answer)
                print(f"round {turn}/{arguments.rounds} {name}", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    engines = {name: _summary(rounds[name], facts[name], arguments.prompt_tokens) for name in names}
    copy = copy_bandwidth(torch.device(facts["minillm"]["device"])) or float("nan")
    ours = engines["minillm"]
    ours["active_bytes_per_token"] = facts["minillm"]["bytes_per_step"]
    ours["decode_gb_per_second"] = ours["active_bytes_per_token"] * ours["decode_tokens_per_second"] / 1e9
    ours["bandwidth_share"] = ours["decode_gb_per_second"] * 1e9 / copy
    report = {"engines": engines, "copy_gb_per_second": copy / 1e9, "prompt_tokens": arguments.prompt_tokens}
    if arguments.against:
        peer = engines[arguments.against]
        report["ratios"] = {
            kind: ours[kind] / peer[kind] for kind in ("decode_tokens_per_second", "prefill_tokens_per_second")
        }
    return report


def _answer(worker: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        if worker.wait() == cli.EXIT_BAD_INPUT:  # it has said what is wrong
            sys.exit(cli.EXIT_BAD_INPUT)
        raise ValueError(f"the process of {name} ended early; what it said stands above")
    return json.loads(line)


def _summary(rounds: list[dict[str, Any]], facts: dict[str, Any], prompt_tokens: int) -> dict[str, Any]:
    return {
        "decode_tokens_per_second": 1 / statistics.median(step for each in rounds for step in each["decode"]),
        "prefill_tokens_per_second": prompt_tokens / statistics.median(each["prefill"] for each in rounds),
        "load_seconds": facts["load_seconds"],
        "peak_load_bytes": facts["peak_load_bytes"],
        "peak_bytes": rounds[-1]["peak_bytes"],
        "dtype": facts["dtype"],
        "device": facts["device"],
    }


def write_random(folder: Path, name: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """A checkpoint of random weights in the published shape `name`, in hub layout, without a tokenizer."""
    spec, rules, _ = families.resolve(SHAPES[name])
    model = skeleton(spec, dtype)
    torch.manual_seed(0)
    parameters = {}
    for key, parameter in model.named_parameters():
        values = torch.empty(parameter.shape, dtype=parameter.dtype)
        parameters[key] = values.fill_(1) if parameter.dim() == 1 else values.normal_(std=0.02)
    save(folder / "model.safetensors", parameters, rules, model.destinations())
    values_json = {**SHAPES[name], "torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(values_json), encoding="utf-8")


def _print(report: dict[str, Any]) -> None:
    print(f"{'engine':14}{'decode tok/s':>14}{'prefill tok/s':>15}{'load s':>9}{'peak MB':>10}")
    for name, engine in report["engines"].items():
        print(
            f"{name:14}{engine['decode_tokens_per_second']:14.1f}{engine['prefill_tokens_per_second']:15.1f}"
            f"{engine['load_seconds']:9.1f}{engine['peak_bytes'] / 1e6:10.0f}"
        )
    ours = report["engines"]["minillm"]
    print(
        f"minillm reads {ours['active_bytes_per_token'] / 1e6:.0f} MB per token when decoding, at "
        f"{ours['decode_gb_per_second']:.1f} GB/s: {ours['bandwidth_share']:.0%} of the "
        f"{report['copy_gb_per_second']:.1f} GB/s this machine copies"
    )
    if ratios := report.get("ratios"):
        decode, prefill = ratios["decode_tokens_per_second"], ratios["prefill_tokens_per_second"]
        print(f"ratio: decode {decode:.2f}x, prefill {prefill:.2f}x")
    print(json.dumps(report))


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["kernels"]:
        return bench_kernels.main(given[1:])
    parser = cli.parser("bench", "Measure speed against the machine's limit and against a peer.")
    cli.add_model_arguments(parser)
    parser.set_defaults(dtype="bfloat16")
    parser.add_argument("--random", metavar="SHAPE", choices=sorted(SHAPES), help=f"one of {', '.join(sorted(SHAPES))}")
    parser.add_argument("--against", choices=sorted(set(ENGINES) - {"minillm"}))
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--worker", choices=sorted(ENGINES), help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.weights and arguments.random:
        parser.error("--weights and --random exclude each other")
    if min(arguments.prompt_tokens, arguments.new_tokens, arguments.rounds) < 1:
        parser.error("--prompt-tokens, --new-tokens and --rounds must be at least 1")
    if arguments.worker:
        return cli.run(lambda: work(arguments))

    def body() -> int:
        with tempfile.TemporaryDirectory(prefix="minillm-bench-") as folder:
            if arguments.random:
                print(f"writing random weights of {arguments.random}", file=sys.stderr)
                write_random(Path(folder), arguments.random)
                arguments.weights = folder
            arguments.weights = hub.resolve(arguments.weights)
            _print(compare(arguments))
        return 0

    return cli.run(body)


if __name__ == "__main__":
    sys.exit(main())
