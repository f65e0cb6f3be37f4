"""The engine in a thread: requests from threads and event loops, ends that come early, a step that fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import minillm
from minillm.engine.batching.threaded import Busy, Failed

STORY = "Once upon a time there was a little girl who had a big red ball and a small green house by the sea"


@pytest.fixture(scope="module")
def llm() -> minillm.LLM:
    return minillm.load(dtype="float32")


@pytest.fixture
def engine(llm: minillm.LLM) -> Iterator[minillm.Engine]:
    made = minillm.Engine(llm, cache_memory=2_000_000, max_rows=4)
    yield made
    made.close()


def everything_is_free(engine: minillm.Engine) -> bool:
    return all(not blocks.users for blocks in engine.engine.store.groups.values())


def test_it_writes_what_generate_writes(llm: minillm.LLM, engine: minillm.Engine) -> None:
    asked: list[dict[str, Any]] = [{"max_new_tokens": 30, "temperature": 0.8, "seed": seed} for seed in range(9)]
    tickets = [engine.submit(llm.completion(STORY[: 9 * (n + 1)], **each)) for n, each in enumerate(asked)]
    found = ["".join(ticket) for ticket in tickets]
    assert found == [llm.generate(STORY[: 9 * (n + 1)], **each).text for n, each in enumerate(asked)]


def test_streams_of_an_event_loop(llm: minillm.LLM, engine: minillm.Engine) -> None:
    async def one(seed: int) -> str:
        ticket = engine.submit(llm.completion("Once", max_new_tokens=20, temperature=1.0, seed=seed))
        return "".join([piece async for piece in ticket])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(seed) for seed in range(6)))

    expected = [llm.generate("Once", max_new_tokens=20, temperature=1.0, seed=seed).text for seed in range(6)]
    assert asyncio.run(all_of_them()) == expected


def test_a_beginning_is_read_once(llm: minillm.LLM, engine: minillm.Engine) -> None:
    first = engine.submit(llm.completion(STORY, max_new_tokens=20))
    text = "".join(first)
    again = engine.submit(llm.completion(STORY, max_new_tokens=20))
    other = engine.submit(llm.completion(STORY, max_new_tokens=20), salt=b"somebody else")
    assert "".join(again) == "".join(other) == text
    assert again.request.cached == len(again.row.prompt) // 16 * 16
    assert other.request.cached == 0


def test_a_request_that_is_cancelled_ends_and_leaves_nothing(llm: minillm.LLM, engine: minillm.Engine) -> None:
    long, other = (engine.submit(llm.completion("Once", max_new_tokens=n, ignore_eos=True)) for n in (400, 40))
    pieces = iter(long)
    next(pieces)
    engine.cancel(long)
    assert "".join(pieces) is not None
    assert long.row.finish_reason == "cancelled"
    assert len(long.row.token_ids) < 400
    assert "".join(other) == llm.generate("Once", max_new_tokens=40, ignore_eos=True).text
    engine.cancel(other)  # which has ended
    assert engine.drain(30)
    assert everything_is_free(engine)


def test_a_deadline_that_is_past(llm: minillm.LLM, engine: minillm.Engine) -> None:
    ticket = engine.submit(llm.completion("Once", max_new_tokens=40), deadline=0.0)
    assert "".join(ticket) == ""
    assert ticket.row.finish_reason == "deadline"


def test_a_step_that_fails_ends_its_requests_alone(llm: minillm.LLM, engine: minillm.Engine) -> None:
    expected = llm.generate("Once", max_new_tokens=10).text
    advance, raised = engine.engine.store.advance, threading.Event()

    def broken(*given: Any) -> None:
        if not raised.is_set():
            raised.set()
            raise RuntimeError("a kernel broke")
        advance(*given)

    engine.engine.store.advance = broken  # type: ignore[method-assign]
    with pytest.raises(Failed, match="a step failed: RuntimeError: a kernel broke"):
        "".join(engine.submit(llm.completion("Once", max_new_tokens=10)))
    assert engine.health()["alive"]
    assert "".join(engine.submit(llm.completion("Once", max_new_tokens=10))) == expected
    assert engine.drain(30)
    assert everything_is_free(engine)


def test_what_is_not_taken(llm: minillm.LLM) -> None:
    engine = minillm.Engine(llm, cache_memory=200_000, max_rows=1, max_waiting=1)
    room = engine.engine.store.most()
    assert room < llm.spec.context
    with pytest.raises(ValueError, match=f"asked for, the cache has room for {room:,}; ask for fewer"):
        engine.submit(llm.completion("Once", max_new_tokens=room))
    tickets = [engine.submit(llm.completion("Once", max_new_tokens=room - 20, ignore_eos=True)) for _ in range(2)]
    with pytest.raises(Busy, match="all 1 places in the queue are taken; try again later"):
        engine.submit(llm.completion("Once", max_new_tokens=5))
    assert not engine.drain(0)
    with pytest.raises(Busy, match="is closing"):
        engine.submit(llm.completion("Once", max_new_tokens=5))
    engine.close()
    assert {ticket.row.finish_reason for ticket in tickets} <= {"cancelled", "length"}
    assert not engine.health()["alive"]


def test_what_is_no_field_of_a_request_is_the_callers_error(llm: minillm.LLM, engine: minillm.Engine) -> None:
    with pytest.raises(TypeError, match="urgency"):
        engine.submit(llm.completion("Once"), urgency=3)
    assert engine.drain(0)
    assert engine.health()["alive"]


@pytest.mark.parametrize("memory", [0, -1.0])
def test_a_cache_that_cannot_be(llm: minillm.LLM, memory: float) -> None:
    with pytest.raises(ValueError, match=f"memory for the cache is {memory}; give a number of bytes, or a share"):
        minillm.Engine(llm, cache_memory=memory)


def test_a_step_interrupts_an_event_loop_once(llm: minillm.LLM, engine: minillm.Engine) -> None:
    """Whatever it wrote, and for however many: each time the loop takes Python's lock from the engine's thread."""
    calls: list[Any] = []

    async def all_of_them() -> None:
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def counted(*given: Any, **named: Any) -> Any:
            calls.append(given)
            return call(*given, **named)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        rows = [llm.completion("Once", max_new_tokens=20, ignore_eos=True, seed=seed) for seed in range(4)]
        tickets = engine.submit_many(rows)

        async def one(ticket: Any) -> None:
            async for _ in ticket:
                pass

        await asyncio.gather(*map(one, tickets))

    asyncio.run(all_of_them())
    assert len(calls) <= 30  # 20 steps, and a few in which not all begin


def test_a_loop_that_is_closed_does_the_engine_no_harm(llm: minillm.LLM, engine: minillm.Engine) -> None:
    async def begun() -> Any:
        ticket = engine.submit(llm.completion("Once", max_new_tokens=400, ignore_eos=True))
        ticket.kept = aiter(ticket)  # type: ignore[attr-defined]
        await anext(ticket.kept)  # type: ignore[attr-defined]
        return ticket

    loop = asyncio.new_event_loop()
    ticket = loop.run_until_complete(begun())
    loop.close()
    assert engine.drain(30)
    assert ticket.row.finish_reason == "length"
    assert engine.health()["alive"]


def test_after_a_rest_the_engine_does_not_seem_to_stand_still(llm: minillm.LLM, engine: minillm.Engine) -> None:
    go = threading.Event()
    engine._messages.put(go.wait)  # the thread has not read the request yet
    engine._last -= 1000
    ticket = engine.submit(llm.completion("Once", max_new_tokens=2))
    since = engine.health()["seconds_since_step"]
    go.set()
    "".join(ticket)
    assert since < 500
