"""What HTTP costs: the same requests through minillm's server and through its engine alone, by turns.

    python -m minillm.bench http --random qwen2.5-0.5b [--concurrency 16] [--prompt-tokens 32] [--new-tokens 64]

Server and engine have a process each, and the clients are this one: all three share the machine, as they would. A round
has the requests through both, now the one first and now the other, and then one request by itself through both. Ratios
and differences are those of rounds, and of these the median: what else a machine does changes by the second. While the
last round of the server runs, which counts for nothing else, /health is asked fifty times a second. The last line of
stdout is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

from minillm import cli
from minillm.bench.client import address, ask, status
from minillm.bench.serving import spread
from minillm.bench.weights import checkpoint, scratch_folder
from minillm.families.shared.shapes import SHAPES

LOADING = 600  # seconds
BETWEEN = 0.02  # seconds between two questions after health
MODEL = "model"


class Alone:
    """The engine's process (`alone.py`)."""

    def __init__(self, settings: dict[str, Any]):
        command = [sys.executable, "-m", "minillm.bench.alone", json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()

    def round(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps({"prompts": prompts, "new_tokens": new_tokens}), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise ValueError(f"the engine's process ended with exit code {self.process.wait()}; its words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Behind:
    """The server's process. Its log goes to a file."""

    def __init__(self, settings: dict[str, Any], concurrency: int, log: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "minillm.serve", "--port", str(port), "--served-model-name", MODEL]
        command += ["--max-batch", str(max(concurrency, 32)), "--cache-memory", str(settings["memory"])]
        for name in ("weights", "dtype", "device", "threads"):
            command += [f"--{name}", str(settings[name])] if settings[name] is not None else []
        self.where: SplitResult = address(f"http://127.0.0.1:{port}")
        with log.open("wb") as written:
            self.process = subprocess.Popen(command, stdout=written, stderr=written)
        until = time.monotonic() + LOADING
        while asyncio.run(status(self.where, "/health")) != 200:
            if self.process.poll() is not None or time.monotonic() > until:
                said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise ValueError(f"the server did not start: {said[-1][:300]}")
            time.sleep(0.2)

    async def round(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Raises ValueError where a request is not answered."""
        body = {"model": MODEL, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        body |= {"return_token_ids": True, "stream_options": {"include_usage": True}}
        began = time.perf_counter()
        asked = (ask(self.where, "completions", {**body, "prompt": each}, None, LOADING) for each in prompts)
        answers = await asyncio.gather(*asked)
        seconds = time.perf_counter() - began
        for each in answers:
            if each.error is not None or each.tokens != new_tokens:
                raise ValueError(f"a request was not answered: {each.error or f'{each.tokens} tokens'}")
        return {"seconds": seconds, "first_token_s": [each.times[0] - each.began for each in answers]}

    async def health(self, prompts: list[list[int]], new_tokens: int) -> list[float]:
        """Seconds that /health takes while a round runs."""
        round_, found = asyncio.create_task(self.round(prompts, new_tokens)), []
        while not round_.done():
            began = time.perf_counter()
            if (code := await status(self.where, "/health")) != 200:
                raise ValueError(f"/health says {code}")
            found.append(time.perf_counter() - began)
            await asyncio.sleep(BETWEEN)
        await round_
        return found


def measure(arguments: argparse.Namespace, alone: Alone, behind: Behind) -> dict[str, Any]:
    """Figures of all rounds but the first, which warms up."""
    draw, size, new = random.Random(arguments.seed), alone.facts["vocabulary"], arguments.new_tokens

    def prompts(count: int) -> list[list[int]]:
        return [[draw.randrange(size) for _ in range(arguments.prompt_tokens)] for _ in range(count)]

    rounds: list[dict[str, Any]] = []
    for turn in range(arguments.rounds + 1):
        many, one, found = prompts(arguments.concurrency), prompts(1), {}
        for name in ("engine", "http") if turn % 2 else ("http", "engine"):
            run = alone.round if name == "engine" else lambda *given: asyncio.run(behind.round(*given))
            found[name], found[f"one_{name}"] = run(many, new), run(one, 2)
        rounds.append(found)
    del rounds[0]
    seconds = {name: [each[name]["seconds"] for each in rounds] for name in ("engine", "http")}
    firsts = {name: [each[name]["first_token_s"] for each in rounds] for name in ("one_engine", "one_http")}
    tokens = arguments.concurrency * new
    ratios = [a / b for a, b in zip(seconds["engine"], seconds["http"], strict=True)]
    later = [b[0] - a[0] for a, b in zip(firsts["one_engine"], firsts["one_http"], strict=True)]
    return {
        "concurrency": arguments.concurrency, "prompt_tokens": arguments.prompt_tokens, "new_tokens": new,
        "rounds": arguments.rounds, **alone.facts,
        "engine_tok_s": tokens / statistics.median(seconds["engine"]),
        "http_tok_s": tokens / statistics.median(seconds["http"]),
        "ratio": statistics.median(ratios), "ratios": ratios,
        "first_token_later_s": statistics.median(later), "first_tokens_later_s": later,
        "health_s": spread(asyncio.run(behind.health(prompts(arguments.concurrency), new))),
    }  # fmt: skip


@contextlib.contextmanager
def running(arguments: argparse.Namespace, weights: Path, scratch: Path) -> Iterator[tuple[Alone, Behind]]:
    """Both processes; ended when the block is left."""
    names = ("dtype", "device", "threads", "memory")
    settings = {"weights": str(weights), **{name: getattr(arguments, name) for name in names}}
    processes: list[subprocess.Popen[Any]] = []
    try:
        alone = Alone(settings)
        processes.append(alone.process)
        behind = Behind(settings, arguments.concurrency, scratch / "server.log")
        processes.append(behind.process)
        yield alone, behind
    finally:
        for process in processes:
            process.kill()
            process.wait()


def parser() -> argparse.ArgumentParser:
    made = cli.parser("bench http", "The same requests through the server and through the engine alone.")
    made.add_argument("--weights", metavar="PATH", help=cli.WEIGHTS)
    made.add_argument("--random", metavar="SHAPE", choices=sorted(SHAPES), help=f"one of {', '.join(sorted(SHAPES))}")
    made.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--threads", type=int, metavar="N", help="of a CPU (default: all)")
    made.add_argument("--memory", type=float, default=1e9, metavar="BYTES", help="of keys and values, of each process")
    made.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at a time (default 16)")
    made.add_argument("--prompt-tokens", type=int, default=32, metavar="N")
    made.add_argument("--new-tokens", type=int, default=64, metavar="N")
    made.add_argument("--rounds", type=int, default=5, metavar="N")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts")
    return made


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    given = made.parse_args(argv)
    if given.weights and given.random:
        made.error("--weights and --random exclude each other")
    if min(given.concurrency, given.prompt_tokens, given.rounds, given.threads or 1) < 1 or given.new_tokens < 2:
        made.error("--concurrency, --prompt-tokens, --rounds and --threads must be at least 1, --new-tokens 2")
    with scratch_folder() as scratch:
        weights = checkpoint(given.weights, given.random, scratch)
        with running(given, weights, scratch) as (alone, behind):
            report = {"shape": given.random or weights.name, **measure(given, alone, behind)}
    health = report["health_s"]
    print(
        f"{report['shape']} on {report['device']}, {report['threads']} threads, {given.concurrency} requests at a time:"
        f"\n  {report['http_tok_s']:.1f} tok/s through HTTP, {report['engine_tok_s']:.1f} through the engine alone:"
        f" {report['ratio']:.3f} (rounds: {' '.join(f'{each:.3f}' for each in sorted(report['ratios']))})"
        f"\n  the first token of a single request comes {1e3 * report['first_token_later_s']:.1f} ms later"
        f"\n  /health meanwhile: p50 {1e3 * health['p50']:.1f} ms, p99 {1e3 * health['p99']:.1f} ms\n\n"
        f"{json.dumps(report)}"
    )
    return 0
