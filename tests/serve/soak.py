"""A server under whatever clients do, for as long as you like:

    python -m tests.serve.soak --minutes 3

64 clients ask without a pause, for random things: whole answers and streams, several at a time, by slow readers, by
some that leave, and for what cannot be. Each answer must be what the model gives alone, none may be lost or late,
memory must not grow, and /health is asked by a process of its own. Then the server is killed in the middle, and another
at the same address told to stop in the middle. The last line of stdout is JSON; the exit code is 1 where something is
not as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import minillm
from minillm.bench.client import _connected, _head, _pieces, address, status
from minillm.bench.serving import spread
from tests.serve.test_command import Command

WORDS = "cat dog bird fish horse girl boy king".split()
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"temperature": 0, "stop": [" the"]},
]
WRONG: list[dict[str, Any]] = [{"top_p": 9}, {"max_tokens": "many"}, {"unknown": 1}, {"prompt": "x" * 9000}]
KINDS = ("whole", "stream", "stream", "slow", "two", "leave", "give up", "wrong")
NEW = 24  # tokens of an answer
LATE = 60.0  # seconds until an answer is lost
GROWTH = 0.05  # of the server's memory after two fifths of the time: its caches are full then
BAD = ("Traceback", '"fault"')  # in the server's log
HEADERS = "host: localhost\r\nconnection: close\r\n"
HEALTHY = 0.1  # seconds between two questions after health


class Clients:
    """What they ask of a server, and what comes of it."""

    def __init__(self, url: str, llm: minillm.LLM):
        self.where, self.kinds, self.faults = address(url), Counter[str](), Counter[str]()
        self.questions = [
            {"prompt": f"Once upon a time there was a {word}", "max_tokens": NEW, **setting}
            for word in WORDS
            for setting in SETTINGS
        ]
        self.answers = [alone(llm, each) for each in self.questions]

    async def post(self, body: Any) -> tuple[int, bytes]:
        """A whole answer."""
        async with _connected(self.where) as (reader, writer):
            writer.write(request(body))
            code, headers = await _head(reader)
            return code, b"".join([piece async for piece in _pieces(reader, headers)])

    async def stream(self, body: dict[str, Any], draw: random.Random, most: int = 10**9, slow: float = 0.0) -> str:
        """All text of a stream, or what comes until its reader leaves after so many pieces."""
        said = b""
        async with _connected(self.where) as (reader, writer):
            writer.write(request({**body, "stream": True}))
            code, headers = await _head(reader)
            assert code == 200, code
            async for piece in _pieces(reader, headers):
                said, most = said + piece, most - 1
                if not most:
                    break
                if slow and draw.random() < 0.3:
                    await asyncio.sleep(slow * draw.random())
        return said.decode()

    async def ask(self, kind: str, draw: random.Random) -> str | None:
        """What is wrong with the answer to a random question of a kind."""
        number = draw.randrange(len(self.questions))
        body, expected = self.questions[number], self.answers[number]
        if kind == "wrong":
            code, said = await self.post({**body, **draw.choice(WRONG)})
            return None if code == 400 and "error" in json.loads(said) else f"{code} for what cannot be"
        if kind == "leave":
            await self.stream({**body, "max_tokens": 400, "ignore_eos": True}, draw, most=draw.randrange(1, 20))
            return None
        if kind == "give up":
            asked = self.post({**body, "max_tokens": 400, "ignore_eos": True})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asked, draw.random())
            return None
        if kind in ("stream", "slow"):
            said = await self.stream(body, draw, slow=0.3 if kind == "slow" else 0.0)
            return None if text_of(said) == expected else "another text in a stream"
        n = 2 if kind == "two" else 1
        code, answer = await self.post({**body, "n": n})
        texts = [choice["text"] for choice in json.loads(answer)["choices"]] if code == 200 else [f"status {code}"]
        return None if texts[0] == expected and len(texts) == n else "another text"

    async def client(self, number: int, until: float) -> None:
        draw = random.Random(number)
        while time.monotonic() < until:
            kind = draw.choice(KINDS)
            self.kinds[kind] += 1
            try:
                fault = await asyncio.wait_for(self.ask(kind, draw), LATE)
            except asyncio.TimeoutError:
                fault = f"no answer within {LATE:.0f} s"
            except Exception as error:
                fault = f"lost: {type(error).__name__}: {error}"
            if fault:
                self.faults[f"{kind}: {fault}"] += 1

    async def run(self, count: int, seconds: float, process: int) -> list[float]:
        """All of them for so many seconds; the server's memory in MB, as it was every tenth of that."""
        until, sizes = time.monotonic() + seconds, []
        tasks = [asyncio.create_task(self.client(number, until)) for number in range(count)]
        for _ in range(10):
            await asyncio.sleep(seconds / 10)
            sizes.append(resident(process))
        await asyncio.gather(*tasks)
        return sizes


def alone(llm: minillm.LLM, body: dict[str, Any]) -> str:
    """What a question is answered with when nothing else is."""
    options = {"max_new_tokens" if name == "max_tokens" else name: value for name, value in body.items()}
    result = llm.generate(**options)
    assert isinstance(result, minillm.Result)
    return result.text


def request(body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def text_of(stream: str) -> str | None:
    """The text of a stream that has come to its end; None for one that has not."""
    if not stream.endswith("data: [DONE]\n\n"):
        return None
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def resident(process: int) -> float:
    """MB of memory that a process has."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def watch(url: str) -> None:
    """Ask for /health until stdin ends, then print the seconds of each answer."""
    seconds: list[float] = []

    async def ask() -> None:
        closed = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        while not closed.done():
            began = time.perf_counter()
            code = await status(address(url), "/health")
            seconds.append(time.perf_counter() - began if code == 200 else 1e6)
            await asyncio.sleep(HEALTHY)

    asyncio.run(ask())
    print(json.dumps(seconds))


def soak(llm: minillm.LLM, count: int, seconds: float) -> dict[str, Any]:
    """Clients of all kinds, and SIGKILL while requests are under way; then another server at the same address, which
    answers as if nothing had been, and SIGTERM. `faults` has what was not as it must be."""
    first, second = Command("--dtype", "float32"), None
    watcher = subprocess.Popen(
        [sys.executable, "-m", "tests.serve.soak", "--watch", first.url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        clients = Clients(first.url, llm)
        sizes = asyncio.run(clients.run(count, seconds, first.process.pid))
        health = spread(json.loads(watcher.communicate()[0]))
        faults = Counter(clients.faults)
        if left := asyncio.run(busy(first.url)):
            faults[f"still busy: {left}"] += 1
        if seconds >= 60 and sizes[-1] > sizes[3] * (1 + GROWTH):
            faults[f"memory grew: {sizes}"] += 1
        killed = asyncio.run(interrupted(clients, first, signal.SIGKILL))
        port = first.url.rpartition(":")[2]
        second = Command("--dtype", "float32", "--port", port, "--drain-timeout", "1", "--max-batch", "8")
        answered = [asyncio.run(clients.ask(kind, random.Random(0))) for kind in ("whole", "stream", "two")]
        faults.update(f"after SIGKILL: {fault}" for fault in answered if fault)
        ended = asyncio.run(interrupted(clients, second, signal.SIGTERM))
        faults.update(f"SIGTERM: a request ends with {end}" for end in ended if end not in ("whole", "error"))
        faults.update([f"SIGTERM: exit code {code}"] if (code := second.process.wait(LATE)) else [])
        faults.update(line for each in (first, second) for line in each.said if any(sign in line for sign in BAD))
    finally:
        for process in (watcher, first.process, *((second.process,) if second else ())):
            process.kill()
            process.wait()
    ends = {"SIGKILL": dict(Counter(killed)), "SIGTERM": dict(Counter(ended))}
    return {"requests": clients.kinds, "faults": faults, "memory_mb": sizes, "health_s": health, "ends": ends}


async def busy(url: str) -> list[str]:
    """What the server's metrics say that is under way, waits or has memory, once nobody asks any more."""
    for _ in range(100):
        async with _connected(address(url)) as (reader, writer):
            writer.write(f"GET /metrics HTTP/1.1\r\n{HEADERS}\r\n".encode())
            _, headers = await _head(reader)
            said = b"".join([piece async for piece in _pieces(reader, headers)]).decode()
        names = ("minillm:num_requests_running{", "minillm:num_requests_waiting{", "minillm:kv_cache_usage_perc{")
        found = [line for line in said.splitlines() if line.startswith(names) and float(line.split()[-1])]
        if not found:
            return []
        await asyncio.sleep(0.1)
    return found


async def interrupted(clients: Clients, server: Command, how: signal.Signals) -> list[str]:
    """How each of the requests has ended."""
    body = {**clients.questions[0], "max_tokens": 300, "ignore_eos": True}

    async def one(stream: bool) -> str:
        try:
            if not stream:
                code, said = await clients.post(body)
                return "whole" if code == 200 else "error" if code == 503 and b"shutting_down" in said else str(code)
            text = await clients.stream(body, random.Random(0))
        except Exception as error:
            return f"{type(error).__name__}"
        return "whole" if text_of(text) is not None else "error" if '"code":"shutting_down"' in text else "cut"

    tasks = [asyncio.create_task(one(bool(number % 2))) for number in range(24)]
    await asyncio.sleep(0.5)
    server.process.send_signal(how)
    return list(await asyncio.wait_for(asyncio.gather(*tasks), LATE))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.serve.soak", description=__doc__.partition(":")[0])
    parser.add_argument("--minutes", type=float, default=3.0, metavar="N")
    parser.add_argument("--clients", type=int, default=64, metavar="N")
    parser.add_argument("--watch", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.watch:
        watch(given.watch)
        return 0
    found = soak(minillm.load(dtype="float32"), given.clients, 60 * given.minutes)
    print(f"{found['requests'].total()} requests of {given.clients} clients in {given.minutes:g} minutes")
    print(f"memory {found['memory_mb'][3]:.0f} MB after two fifths, {found['memory_mb'][-1]:.0f} MB at the end")
    print("/health " + ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in found["health_s"].items()))
    for name, ends in found["ends"].items():
        print(f"{name} with 24 requests under way: {ends}")
    print(f"faults: {list(found['faults']) or 'none'}\n\n{json.dumps(found)}")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
