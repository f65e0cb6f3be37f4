"""A server under load, minillm's or any other of the OpenAI API: when tokens come, and how many in all.

    python -m minillm.bench serve --url http://127.0.0.1:8000 --model NAME
        [--concurrency 1,4,16 | --rate 1,2,4] [--requests 64] [--prompts FILE --runs 3] [--plot FILE.png]

With --concurrency so many requests are under way all the time; with --rate they arrive at random, so many a second on
average, whether or not others have ended. Prompts are random words, each unlike all others from its first on, or the
lines of a file, each asked --runs times. Of each request: seconds to the first token, between two (chunks, where a
server sends several tokens in one), and to the end. Its tokens are those that the server counts. One short request goes
before the clock starts. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minillm import cli
from minillm.bench.client import Answer, address, ask
from minillm.guard.files import read_text, text_file
from minillm.guard.screen import note, printable
from minillm.report import picture

SYLLABLES = "ba be bi bo da de di do ga ge gi go la le li lo ma me mi mo na ne ni no ra re ri ro sa se si so".split()
KEY = "OPENAI_API_KEY"
SHARES = (50, 95, 99)
MEASURES = {"first_token_s": "first token", "between_tokens_s": "between tokens", "whole_s": "whole"}


def words(count: int, draw: random.Random) -> str:
    """Random words of two syllables."""
    return " ".join(draw.choice(SYLLABLES) + draw.choice(SYLLABLES) for _ in range(count))


def spread(values: Sequence[float]) -> dict[str, float]:
    """The average, and p50, p95 and p99: the least value that so many per cent are not above."""
    ordered = sorted(values)
    if not ordered:
        return {}
    ranks = {f"p{share}": ordered[max(0, -(-len(ordered) * share // 100) - 1)] for share in SHARES}
    return {"avg": sum(ordered) / len(ordered), **ranks}


async def together(requests: Sequence[Callable[[], Coroutine[Any, Any, Answer]]], concurrency: int) -> list[Answer]:
    """All requests, so many at a time."""
    waiting = iter(requests)

    async def one_after_another() -> list[Answer]:
        return [await request() for request in waiting]

    found = await asyncio.gather(*(one_after_another() for _ in range(concurrency)))
    return list(itertools.chain(*found))


async def arriving(
    requests: Sequence[Callable[[], Coroutine[Any, Any, Answer]]], rate: float, draw: random.Random
) -> list[Answer]:
    """All requests, each when its time has come: a Poisson process."""
    began, due, tasks = time.perf_counter(), 0.0, []
    for request in requests:
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        tasks.append(asyncio.create_task(request()))
        due += draw.expovariate(rate)
    return list(await asyncio.gather(*tasks))


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Figures of one load. Requests that went wrong are in `errors` alone."""
    good = [answer for answer in answers if answer.error is None and answer.times]
    counts = [answer.tokens if answer.tokens is not None else len(answer.times) for answer in good]
    wholes = [answer.ended - answer.began for answer in good]
    errors = Counter(answer.error or "an answer without a token" for answer in answers if answer not in good)
    gaps = [later - earlier for answer in good for earlier, later in itertools.pairwise(answer.times)]
    prompts = [answer.prompt_tokens for answer in good if answer.prompt_tokens is not None]
    return {
        "requests": len(answers), "answered": len(good), "errors": dict(errors.most_common(20)), "seconds": seconds,
        "new_tokens": sum(counts), "prompt_tokens": sum(prompts) if len(prompts) == len(good) else None,
        "counted_by": "server" if all(answer.tokens is not None for answer in good) else "chunks",
        "new_tok_s": sum(counts) / seconds, "requests_s": len(good) / seconds,
        "first_token_s": spread([answer.times[0] - answer.began for answer in good]),
        "between_tokens_s": spread(gaps), "whole_s": spread(wholes),
        "tok_s_per_request": spread([count / whole for count, whole in zip(counts, wholes, strict=True)]),
    }  # fmt: skip


class Load:
    """What is asked of a server, and how often."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.where = arguments, address(arguments.url)
        self.draw = random.Random(arguments.seed)
        given = arguments.prompts and read_text(text_file("--prompts", arguments.prompts)).splitlines()
        lines = [line for line in given or () if line.strip()]
        if arguments.prompts and not lines:
            raise ValueError(f"{arguments.prompts} has no prompt; write one a line")
        self.lines = [line for line in lines for _ in range(arguments.runs)]

    def prompts(self) -> list[str]:
        if self.lines:
            return self.lines
        return [words(self.arguments.prompt_tokens, self.draw) for _ in range(self.arguments.requests)]

    def request(self, prompt: str, bar: tqdm | None = None) -> Callable[[], Coroutine[Any, Any, Answer]]:
        given = self.arguments
        body: dict[str, Any] = {"model": given.model, "max_tokens": given.new_tokens, "temperature": given.temperature}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        body |= {"ignore_eos": True} if given.ignore_eos else {}
        chat = given.endpoint == "chat"
        body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        path = "chat/completions" if chat else "completions"

        async def send() -> Answer:
            answer = await ask(self.where, path, body, os.environ.get(KEY), given.timeout)
            if bar is not None:
                bar.update()
            return answer

        return send

    async def run(self, kind: str, load: float) -> dict[str, Any]:
        """Figures of one load: so much concurrency, or such a rate."""
        warm = await self.request(words(8, self.draw))()
        if warm.error is not None:
            raise ValueError(f"{self.arguments.url}: {printable(warm.error)}")
        prompts = self.prompts()
        with tqdm(total=len(prompts), unit="req", leave=False, disable=not sys.stderr.isatty()) as bar:
            bar.set_description(f"{kind} {load:g}")
            requests = [self.request(prompt, bar) for prompt in prompts]
            began = time.perf_counter()
            if kind == "concurrency":
                answers = await together(requests, int(load))
            else:
                answers = await arriving(requests, load, self.draw)
            seconds = time.perf_counter() - began
        return {kind: load, **summary(answers, seconds)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Figures for people: seconds as milliseconds."""
    lines = [f"{'load':>16} {'measure':>16} {'avg':>9} {'p50':>9} {'p95':>9} {'p99':>9}"]
    for row in rows:
        kind = next(iter(row))
        for key, name in MEASURES.items():
            figures = [
                f"{1000 * row[key][each]:9.1f}" if row[key] else f"{'–':>9}" for each in ("avg", "p50", "p95", "p99")
            ]
            lines.append(f"{f'{kind} {row[kind]:g}':>16} {name + ' ms':>16} {' '.join(figures)}")
        each = row["tok_s_per_request"].get("avg", 0.0)
        told = f"{row['new_tok_s']:.1f} tok/s in all, {each:.1f} a request"
        lines.append(f"{'':>16} {told}; {row['answered']} of {row['requests']} answered")
        lines += [f"{'':>16} {count} × {printable(error)}" for error, count in row["errors"].items()]
    return "\n".join(lines)


@picture.quiet()
def draw(path: Path, report: dict[str, Any]) -> None:
    """Seconds to the first token, between tokens, and tokens per second in all, over the loads."""
    from matplotlib.figure import Figure

    rows = report["rows"]
    kind = next(iter(rows[0]))
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    loads = [row[kind] for row in rows]
    for axes, (key, title) in zip(panels, list(MEASURES.items())[:2], strict=False):
        for number, share in enumerate(("p50", "p95", "p99")):
            values = [1000 * row[key].get(share, float("nan")) for row in rows]
            look = {"color": picture.COLOURS[number], "marker": picture.MARKERS[number], "label": share}
            axes.plot(loads, values, **look)
        axes.set(title=title, ylabel="milliseconds")
        axes.legend(frameon=False)
    panels[2].plot(loads, [row["new_tok_s"] for row in rows], color=picture.COLOURS[0], marker="o")
    panels[2].set(title="in all", ylabel="new tokens per second")
    for axes in panels:
        axes.set_xlabel("requests under way" if kind == "concurrency" else "requests a second")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(picture.plain(f"{report['model']} at {report['url']}"))
    picture.save(figure, path)


def numbers(text: str) -> list[float]:
    """ "1,2.5" -> [1.0, 2.5]."""
    found = [float(part) for part in text.split(",")]
    if not all(0 < each < 1e6 for each in found):
        raise argparse.ArgumentTypeError(f"{text} is not all above 0")
    return list(dict.fromkeys(found))


def parser() -> argparse.ArgumentParser:
    made = cli.parser("bench serve", "A server of the OpenAI API under load.")
    made.add_argument("--url", required=True, help="such as http://127.0.0.1:8000")
    made.add_argument("--model", required=True, metavar="NAME", help="as the server calls it")
    made.add_argument("--endpoint", default="chat", choices=("chat", "completions"))
    load = made.add_mutually_exclusive_group()
    load.add_argument("--concurrency", type=numbers, metavar="N,…", help="requests under way (default: 1)")
    load.add_argument("--rate", type=numbers, metavar="X,…", help="requests a second")
    made.add_argument("--requests", type=int, default=64, metavar="N", help="at each load")
    made.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="random words of a prompt")
    made.add_argument("--prompts", metavar="FILE", help="ask these, one a line, instead of random words")
    made.add_argument("--runs", type=int, default=1, metavar="N", help="how often each line is asked")
    made.add_argument("--new-tokens", type=int, default=64, metavar="N", help="at most, of an answer")
    made.add_argument("--ignore-eos", action="store_true", help="ask for all of them; not every server can")
    made.add_argument("--temperature", type=float, default=0.0, metavar="X")
    made.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds of one request")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and arrivals")
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it; needs '.[plot]'")
    made.epilog = f"A key is read from {KEY}."
    return made


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    given = made.parse_args(argv)
    if min(given.requests, given.prompt_tokens, given.runs, given.new_tokens) < 1 or given.timeout <= 0:
        made.error("--requests, --prompt-tokens, --runs, --new-tokens and --timeout must be at least 1")
    if given.runs > 1 and not given.prompts:
        made.error("--runs means nothing without --prompts")
    kind, loads = ("rate", given.rate) if given.rate else ("concurrency", given.concurrency or [1.0])
    if kind == "concurrency" and any(each != int(each) for each in loads):
        made.error("--concurrency must be whole numbers")
    if given.plot is not None:
        picture.check(given.plot)
    load = Load(given)
    rows = [asyncio.run(load.run(kind, each)) for each in loads]
    if not any(row["answered"] for row in rows):
        raise ValueError(f"{given.url}: no request was answered: {printable(next(iter(rows[0]['errors'])))}")
    if any(row["counted_by"] == "chunks" for row in rows):
        note("the server does not count tokens: chunks are counted")
    report = {"url": given.url, "model": given.model, "endpoint": given.endpoint, "rows": rows}
    if given.plot is not None:
        draw(given.plot, report)
    print(f"{table(rows)}\n\n{json.dumps(report)}")
    return 0
