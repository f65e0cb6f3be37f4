"""Frameworks that drive a real server as their users do: chats, streams, tools, structured output and errors.

    python -m tests.serve.clients                       # all that are installed, with a server of its own
    python -m tests.serve.clients --url http://…:8000   # one that runs, started with --chat-template FILE

`pip install -e '.[heavy-clients]'` installs most; nothing is installed here. The demo model knows no tools, so the
server has a template that does (`--write-template FILE`), and grammars make the model call them. Where the frameworks
cannot be installed together, each can be run from an environment of its own, which needs nothing of this project. The
last line of stdout is JSON; the exit code is 1 where something fails or nothing is installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

# Distribution, the module that it has, and the checks here.
CLIENTS = {
    "langchain-openai": ("langchain_openai", "langchain"),
    "langchain-anthropic": ("langchain_anthropic", "langchainanthropic"),
    "langchain-ollama": ("langchain_ollama", "langchainollama"),
    "llama-index-llms-openai-like": ("llama_index.llms.openai_like", "llamaindex"),
    "litellm": ("litellm", "lite"),
    "pydantic-ai-slim": ("pydantic_ai", "pydanticai"),
    "openai-agents": ("agents", "openaiagents"),
    "instructor": ("instructor", "instructing"),
    "llm": ("llm", "llmcommand"),
}
CHECKS = ("chat", "stream", "tools", "structured", "errors")


def there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def checked(url: str, name: str) -> dict[str, str]:
    """What came of each check of a client: "yes", or why not."""
    from tests.serve.clients.asked import Server

    server, found = Server(url), {}
    checks = importlib.import_module(f"tests.serve.clients.{CLIENTS[name][1]}")
    for check in CHECKS:
        try:
            getattr(checks, check)(server)
            found[check] = "yes"
        except Exception as error:
            traceback.print_exc()
            found[check] = f"{type(error).__name__}: {str(error)[:200]}"
        print(f"{name} {check}: {found[check]}", flush=True)
    return found


def run(url: str) -> int:
    found = {}
    for name, (module, _) in CLIENTS.items():
        if there(module):
            found[name] = {"version": importlib.metadata.version(name), **checked(url, name)}
    failed = [name for name, each in found.items() if any(each[check] != "yes" for check in CHECKS)]
    print(json.dumps({"clients": found, "failed": failed}))
    return 1 if failed or not found else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.serve.clients", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", help="a server that runs (default: one is started)")
    parser.add_argument("--write-template", metavar="FILE", help="write the chat template of the server, and end")
    arguments = parser.parse_args(argv)
    if arguments.url:
        return run(arguments.url.rstrip("/"))
    from tests.helpers.server import TOOLS_TEMPLATE
    from tests.serve.test_command import Command

    template = TOOLS_TEMPLATE.replace("<think>", "")
    if arguments.write_template:
        Path(arguments.write_template).write_text(template)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.jinja"
        path.write_text(template)
        server = Command("--chat-template", str(path), "--served-model-name", "demo")
        try:
            return run(server.url)
        finally:
            server.end()


if __name__ == "__main__":
    sys.exit(main())
