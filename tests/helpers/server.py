"""A server in a thread of the test process, and an engine that writes what a test says."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import httpx

import minillm
from minillm.engine.completion import Completion
from minillm.serve import app
from minillm.serve.connection import Server
from minillm.serve.keys import Keys
from minillm.serve.models import Served
from minillm.serve.models.catalog import Catalog, Model
from minillm.serve.service import Service
from minillm.serve.settings import Settings

CACHE = 20_000_000  # bytes

# Calls as in `<tool_call>{"name": …, "arguments": …}</tool_call>`, for a model whose own template knows of none.
TOOLS_TEMPLATE = """{{ bos_token }}{% for tool in tools or [] %}{{ tool.function.name }}<tool_call>{% endfor %}\
{% for message in messages %}<|user|>{{ message.role }}: {{ message.content }}\
{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{% endfor %}\
{% if add_generation_prompt %}<|story|>{% if enable_thinking %}<think>
{% endif %}{% endif %}"""


class Running:
    """A service behind a socket."""

    def __init__(self, served: Served | Catalog, keys: Keys | None = None, **settings: Any):
        self._log: list[dict[str, Any]] = []
        models = Catalog([Model.of(served)]) if isinstance(served, Served) else served
        self.service = Service(models, keys or Keys(), Settings(**settings))
        self.app = app.build(self.service, lambda line: self._log.append(json.loads(line)))
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(self.app, self.service, "127.0.0.1", self.port)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([listener])), daemon=True)
        self.thread.start()
        assert self.server.ready.wait(20)

    @property
    def log(self) -> list[dict[str, Any]]:
        """A dict for each request: a client may have its answer before the line is written, so this waits for it."""
        until = time.monotonic() + 20
        while self.server.server_state.tasks and time.monotonic() < until:
            time.sleep(0.002)
        return self._log

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    def idle(self, seconds: float = 20) -> bool:
        """Whether all requests end soon, in the engines too."""
        until = time.monotonic() + seconds
        engines = [each.engine for each in self.service.models.loaded]
        while time.monotonic() < until:
            states = [each.health() for each in engines]
            if not self.server.server_state.tasks and not any(each["running"] or each["waiting"] for each in states):
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server._loop.call_soon_threadsafe(self.server.stop)
        self.thread.join(30)
        assert not self.thread.is_alive()


def serve(llm: minillm.LLM, name: str = "demo", style: str | None = None, **options: Any) -> Served:
    """A model with an engine of its own."""
    return Served(llm, minillm.Engine(llm, cache_memory=CACHE, **options), [name, "alias/of-it"], style)


class Script:
    """In place of an engine: each answer is the next of `texts`, a token at a time, at most `most` tokens."""

    def __init__(self, llm: minillm.LLM, texts: Sequence[str], wait: float = 0.0):
        self.llm, self.texts, self.wait = llm, [*texts], wait
        self.rows: list[Completion] = []
        self.engine = SimpleNamespace(store=SimpleNamespace(most=lambda: 2**20, groups={}))

    def submit_many(self, rows: Sequence[Completion], **how: Any) -> list[Any]:
        self.rows += rows
        return [ScriptedTicket(row, self.llm, self.texts.pop(0), self.wait) for row in rows]

    def cancel(self, ticket: Any) -> None:
        ticket.row.finish_reason = ticket.row.finish_reason or "cancelled"

    def health(self) -> dict[str, Any]:
        return {"alive": True, "running": 0, "waiting": 0, "seconds_since_step": 0.0}

    def close(self) -> None:
        pass


class ScriptedTicket:
    def __init__(self, row: Completion, llm: minillm.LLM, text: str, wait: float):
        assert llm.tokenizer is not None
        self.row, self.wait, self.ended = row, wait, False
        self.tokens = [*llm.tokenizer.encode(text, special=False), *sorted(llm.stop_ids)[:1]]
        now = time.monotonic()
        times = SimpleNamespace(arrived=now, started=now, first=now, last=now)
        self.request = SimpleNamespace(row=row, cached=0, preempted=0, times=times, error=None)

    def listen(self, heard: Callable[[], Any]) -> None:
        self.writing = asyncio.get_running_loop().create_task(self._write(heard))

    async def _write(self, heard: Callable[[], Any]) -> None:
        for token in self.tokens:
            if self.row.finish_reason:
                break
            await asyncio.sleep(self.wait)
            self.row.push(token)
            heard()
        self.ended = True
        heard()
