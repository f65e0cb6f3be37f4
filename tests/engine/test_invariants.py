"""Whatever comes, in whatever order, to an engine with few blocks: each request has the text that it gets alone, and no
block is lost."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import minillm
from minillm.engine.batching.engine import Engine
from minillm.engine.batching.guessing import Wanted
from minillm.engine.batching.request import GONE, Request
from minillm.engine.batching.room import SIZE
from minillm.engine.batching.running import generate
from minillm.engine.completion import Completion, Timings
from minillm.engine.sampling import Sampling
from minillm.model.decoder import Decoder
from tests.helpers import tiny
from tests.helpers.loops import always

# Windows and none, in one model too, sinks, latents, experts, recurrent states, rotary scalings that go by the length,
# several residual streams, indexers, entries for blocks of positions.
FAMILIES = [
    "llama", "mistral-window", "gemma3", "gpt_oss", "deepseek_v3", "mixtral", "phi3-long", "llama-dynamic-beyond",
    "qwen3_next", "olmo_hybrid", "lfm2", "gemma4-apart", "gemma3n", "nemotron_h-latent",
    "falcon_h1", "jamba", "glm_moe_dsa", "hy_v4", "minimax_m3-indexed", "deepseek_v4-all",
]  # fmt: skip
VOCABULARY, MOST = 97, 12
TEXT = tiny.tokens(VOCABULARY, 60, seed=5).tolist()  # what many prompts begin with


@cache
def model_of(row: str) -> Decoder:
    with TemporaryDirectory() as folder:
        tiny.save(Path(folder), *tiny.ROWS[row])
        return minillm.load(folder, dtype="float32").model


@cache
def alone(row: str, prompt: tuple[int, ...], seed: int, most: int) -> list[int]:
    request = Completion([*prompt], Sampling(temperature=0.9, seed=seed), most)
    list(generate(model_of(row), [request], Timings()))
    return request.token_ids


class Requests(RuleBasedStateMachine):
    """Requests come, go on, are cancelled; prompts have beginnings in common, and there is room for two or three."""

    @initialize(
        row=st.sampled_from(FAMILIES), rows=st.integers(1, 4), budget=st.sampled_from((5, 20, 64)),
        blocks=st.integers(6, 12), lag=st.sampled_from((0, 0, 2)), fixed=st.booleans(), guesses=st.integers(0, 3),
    )  # fmt: skip
    def start(self, row: str, rows: int, budget: int, blocks: int, lag: int, fixed: bool, guesses: int) -> None:
        self.row, self.going = row, dict[int, tuple[Request, tuple[Any, ...]]]()
        guesser = always(self, guesses) if guesses and not fixed else None
        self.engine = Engine(model_of(row), blocks * SIZE, rows, budget, fixed, lag=lag, guesser=guesser)

    cost = 0.0

    def propose(self, wanted: Wanted) -> list[list[int]]:
        """What comes, but for some tokens here and there."""
        found = []
        for request, count in wanted:
            at, expected = len(request.row.token_ids), alone(self.row, *self.going[request.number][1])
            right = expected[at : at + count]
            found.append([id if (at + n + request.number) % 3 else (id + 1) % VOCABULARY for n, id in enumerate(right)])
        return found

    @rule(shared=st.integers(0, 60), own=st.integers(1, 20), seed=st.integers(0, 3), most=st.integers(1, MOST),
          salt=st.sampled_from((b"", b"a")), priority=st.integers(0, 1), client=st.sampled_from("ab"))  # fmt: skip
    def add(self, shared: int, own: int, seed: int, most: int, salt: bytes, priority: int, client: str) -> None:
        prompt = (*TEXT[:shared], *tiny.tokens(VOCABULARY, own, seed=seed).tolist())
        row = Completion([*prompt], Sampling(temperature=0.9, seed=seed), most)
        made = self.engine.add(row, salt=salt, priority=priority, client=client)
        self.going[made.number] = made, (prompt, seed, most)

    @rule(length=st.integers(1, 60), count=st.integers(2, 4), most=st.integers(1, MOST))
    def fork(self, length: int, count: int, most: int) -> None:
        """Several continuations of one prompt."""
        prompt, leader = (*TEXT[:length],), None
        for seed in range(count):
            row = Completion([*prompt], Sampling(temperature=0.9, seed=seed), most)
            made = self.engine.add(row, leader=leader)
            self.going[made.number], leader = (made, (prompt, seed, most)), leader or made

    @precondition(lambda self: self.going)
    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(self.going[data.draw(st.sampled_from(sorted(self.going)))][0])

    @invariant()
    def every_block_is_somewhere(self) -> None:
        if not hasattr(self, "engine"):
            return
        under_way = [*self.engine.scheduler.running, *self.engine.scheduler.waiting]
        for group, blocks in self.engine.store.groups.items():
            held = [block for each in under_way for block in each.tables.get(group, ()) if block != GONE]
            assert all(each.saved is None for each in under_way)
            assert blocks.users == {block: held.count(block) for block in held}
            idle = {*blocks.blank, *blocks.kept, *range(blocks.fresh, blocks.count)}
            assert len(idle) == blocks.free == blocks.count - len({*held})
            assert not idle & {*held}
            assert {block: name for name, block in blocks.named.items()} == blocks.name_of
            assert blocks.kept.keys() <= blocks.name_of.keys()

    @invariant()
    def what_came_is_what_comes_alone(self) -> None:
        for request, (prompt, seed, most) in getattr(self, "going", {}).values():
            expected = alone(self.row, prompt, seed, most)
            assert request.error is None
            assert request.row.token_ids == expected[: len(request.row.token_ids)]
            if request.row.finish_reason == "length":
                assert len(request.row.token_ids) == most

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(3000):
            if not self.engine.busy:
                break
            self.engine.step()
        assert not self.engine.busy
        self.engine.scheduler.plan()
        self.every_block_is_somewhere()
        self.what_came_is_what_comes_alone()
        assert all(each.finished for each, _ in self.going.values())


Requests.TestCase.settings = settings(max_examples=40, stateful_step_count=12)
test_requests = Requests.TestCase
