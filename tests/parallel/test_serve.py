"""A server whose model is in two processes: it answers as one process does, streams, batches, and all end with it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from minillm.hub import DEMO
from minillm.loading import load
from tests.parallel.forks import ENDS, Forks

PROMPTS = ["Once upon a time", "There was a dog who", "Lily"]
HOW: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
LINE = "--ranks 2 --port 0 --dtype float32 --cache-memory 20000000".split()


def ended(number: int) -> bool:
    status = Path(f"/proc/{number}/status")
    return not status.exists() or "zombie" in status.read_text()


@pytest.mark.parametrize(("which", "number", "code"), [(None, signal.SIGTERM, 0), (1, signal.SIGKILL, 2)])
def test_two_ranks_serve(which: int | None, number: signal.Signals, code: int, forks: Forks) -> None:
    """Chats, streams and requests at once are what one process writes; SIGTERM ends all, and so does a rank that is
    gone while nothing is asked."""
    run = forks.start("minillm.serve", *LINE)
    end = time.monotonic() + ENDS
    while (found := re.search(r"at (http://\S+);", run.read("err"))) is None:
        assert not ended(run.pid), run.read("err")
        assert time.monotonic() < end, f"nothing is served after {ENDS} s: {run.read('err')}"
        time.sleep(0.02)
    ranks = [int(each) for each in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    assert len(ranks) == 2
    if which is None:
        _asks(found[1])
    os.kill(run.pid if which is None else ranks[which], number)
    ends, _, said = run.ended()
    assert ends == code
    assert all(ended(each) for each in ranks)
    assert ("rank 1 of 2: ended by SIGKILL" in said) == (code == 2)


def _asks(url: str) -> None:
    llm = load(DEMO, dtype="float32", device="cpu")
    how = {"max_new_tokens": HOW["max_tokens"], "temperature": 0}

    def completed(prompt: str) -> str:
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": prompt, **HOW}, timeout=ENDS)
        return str(answer.json()["choices"][0]["text"])

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert [*pool.map(completed, PROMPTS)] == [llm.generate(prompt, **how).text for prompt in PROMPTS]
    messages = [{"role": "user", "content": "Tell me a story."}]
    chat = llm.generate(messages=messages, **how).text
    body = {"messages": messages, **HOW}
    whole = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=ENDS).json()
    assert whole["choices"][0]["message"]["content"] == chat
    streamed = httpx.post(f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=ENDS).text
    pieces = re.findall(r'"content":("(?:[^"\\]|\\.)*")', streamed)
    assert "".join(map(str, map(json.loads, pieces))) == chat
    assert len(pieces) > 4
