"""The soak for seconds: answers are what they are alone, and a server that is stopped or killed loses nothing."""

from __future__ import annotations

import asyncio
import random

import pytest

import minillm
from tests.helpers.server import Running
from tests.serve.soak import Clients, soak


def test_a_crowd_gets_what_each_gets_alone(llm: minillm.LLM) -> None:
    found = soak(llm, 16, 2.0)
    assert found["faults"] == {}
    assert len(found["requests"]) >= 6
    assert set(found["health_s"]) == {"avg", "p50", "p95", "p99"}
    assert set(found["ends"]["SIGKILL"]) - {"whole"}  # they were cut
    assert set(found["ends"]["SIGTERM"]) <= {"whole", "error"}


def test_the_soak_sees_what_is_wrong(llm: minillm.LLM, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of another request, an answer that never comes, a refusal that is none."""
    clients = Clients(server.url, llm)
    kinds = ("whole", "two", "stream", "slow")
    assert [asyncio.run(clients.ask(kind, random.Random(1))) for kind in (*kinds, "wrong", "leave")] == [None] * 6
    clients.answers = clients.answers[1:] + clients.answers[:1]
    found = [asyncio.run(clients.ask(kind, random.Random(1))) for kind in kinds]
    assert found == ["another text"] * 2 + ["another text in a stream"] * 2
    monkeypatch.setattr("tests.serve.soak.WRONG", [{"top_p": 0.5}])
    assert asyncio.run(clients.ask("wrong", random.Random(1))) == "200 for what cannot be"
    server.idle()
