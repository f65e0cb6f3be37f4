"""The command `llm`, with the server as one of its extra models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.serve.clients.asked import LONG, MANY, MODEL, NEW, QUESTION, STORY, Cat, Server

KNOWN = "- {{model_id: {name}, model_name: {name}, api_base: {base}, supports_schema: true, supports_tools: true}}\n"
TOOL = '''
def weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"{city} will have rain for {days} days"
'''


def llm(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command says, in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        names = (MODEL, "other")
        lines = "".join(KNOWN.format(name=name, base=server.base) for name in names)
        (Path(home) / "extra-openai-models.yaml").write_text(lines)
        return subprocess.run(
            [sys.executable, "-m", "llm", *arguments], env={**os.environ, "LLM_USER_PATH": home}, timeout=120,
            capture_output=True, text=True,
        )  # fmt: skip


def said(server: Server, *arguments: str) -> str:
    done = llm(server, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def chat(server: Server) -> None:
    assert said(server, "-m", MODEL, "--no-stream", "-o", "max_tokens", str(NEW), STORY) == server.story


def stream(server: Server) -> None:
    assert said(server, "-m", MODEL, "-o", "max_tokens", str(NEW), STORY) == server.story


def tools(server: Server) -> None:
    """It cannot force a call: tools are sent, and the answer comes."""
    assert said(server, "-m", MODEL, "--functions", TOOL, "-o", "max_tokens", "20", QUESTION)


def structured(server: Server) -> None:
    schema = json.dumps(Cat.model_json_schema())
    answer = said(server, "-m", MODEL, "--schema", schema, "-o", "max_tokens", str(MANY), "Describe a cat")
    Cat.model_validate_json(answer)


def errors(server: Server) -> None:
    for name, prompt, word in (("other", STORY, "404"), (MODEL, LONG, "400")):
        done = llm(server, "-m", name, prompt)
        assert done.returncode == 1, done.stdout
        assert word in done.stderr, done.stderr
