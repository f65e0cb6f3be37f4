"""A server whose model is in two processes: it answers as one process does, streams, batches, and all end with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from minillm.hub import DEMO
from minillm.loading import load
from tests.conftest import ROOT

PROMPTS = ["Once upon a time", "There was a dog who", "Lily"]
HOW: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
LINE = "-m minillm.serve --ranks 2 --port 0 --dtype float32 --cache-memory 20000000".split()


def ended(number: int) -> bool:
    status = Path(f"/proc/{number}/status")
    return not status.exists() or "zombie" in status.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(("which", "number", "code"), [(None, signal.SIGTERM, 0), (1, signal.SIGKILL, 2)])
def test_two_ranks_serve(which: int | None, number: signal.Signals, code: int) -> None:
    """Chats, streams and requests at once are what one process writes; SIGTERM ends all, and so does a rank that is
    gone while nothing is asked."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "env": environment, "cwd": ROOT}
    process = subprocess.Popen([sys.executable, *LINE], **pipes)
    try:
        assert process.stderr is not None
        found = re.search(r"at (http://\S+);", process.stderr.readline())
        assert found is not None
        ranks = [int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(ranks) == 2
        if which is None:
            _asks(found[1])
        os.kill(process.pid if which is None else ranks[which], number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert all(ended(each) for each in ranks)
    assert ("rank 1 of 2: ended by SIGKILL" in said) == (code == 2)


def _asks(url: str) -> None:
    llm = load(DEMO, dtype="float32", device="cpu")
    how = {"max_new_tokens": HOW["max_tokens"], "temperature": 0}

    def completed(prompt: str) -> str:
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": prompt, **HOW}, timeout=60)
        return str(answer.json()["choices"][0]["text"])

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert [*pool.map(completed, PROMPTS)] == [llm.generate(prompt, **how).text for prompt in PROMPTS]
    messages = [{"role": "user", "content": "Tell me a story."}]
    chat = llm.generate(messages=messages, **how).text
    body = {"messages": messages, **HOW}
    whole = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert whole["choices"][0]["message"]["content"] == chat
    streamed = httpx.post(f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=60).text
    pieces = re.findall(r'"content":("(?:[^"\\]|\\.)*")', streamed)
    assert "".join(map(str, map(json.loads, pieces))) == chat
    assert len(pieces) > 4
