"""A cache grows as text comes: what may never come takes no memory, and growing changes nothing of what comes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import generate
from minillm.engine import speculative
from minillm.engine.batching import engine
from minillm.engine.completion import Timings
from minillm.engine.speculative import Draft, PromptLookup
from minillm.guard import memory
from minillm.hub import DEMO
from minillm.model import cache
from minillm.spec import Decoder as Spec
from tests.helpers import tiny
from tests.helpers.loops import listening, requests, texts
from tests.helpers.specs import random_tokens, specs

lengths = st.lists(st.integers(1, 14), min_size=1, max_size=3)


@settings(max_examples=30)
@given(specs(), lengths, st.integers(1, 5), st.sampled_from(("batch", "draft", "lookup")), st.booleans())
def test_growing_changes_nothing(spec: Spec, lengths: list[int], room: int, way: str, compiled: bool) -> None:
    """Bit for bit: room for a few positions at a time, or for all from the start."""
    prompts = [random_tokens(length, seed=i).tolist() for i, length in enumerate(lengths)]
    found = []
    for rooms in (cache.ROOM, room):
        model, heard = listening(spec, torch.float32, compiled=compiled)
        rows, timings = requests(prompts, 24, set()), Timings()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "ROOM", rooms)
            if way == "batch":
                list(engine.generate(model, rows, timings, deterministic=True))
            else:
                guess = Draft(model, model, rows[0], timings) if way == "draft" else PromptLookup(2)
                list(speculative.generate(model, rows[:1], timings, lambda row, guess=guess: guess, 4, True))
        found.append((texts(rows), heard.logits))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    assert all(torch.equal(found[0][1][key], found[1][1][key]) for key in found[0][1])


def test_what_never_comes_costs_nothing() -> None:
    """A config and a generation_config that speak of millions of tokens: the first ones come at once, and of the memory
    for all of them next to nothing is touched."""
    llm = minillm.load(DEMO)
    "".join(llm.stream("Once upon a time", max_new_tokens=3))
    before = resident()
    llm.generation_config = {"max_new_tokens": 80_000_000}
    object.__setattr__(llm.spec, "context", 2**31 - 1)
    pieces = llm.stream("Once upon a time")
    assert "".join(next(pieces) for _ in range(3))
    assert resident() - before < 50e6  # 4e6 were seen; the cache has room for 1e9 bytes at least


def resident() -> int:
    """Bytes of memory that this process has really been given."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_cache_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    llm = minillm.load(DEMO)
    with pytest.raises(
        ValueError, match=r"a cache of 1 x 9,000,000 positions takes .* GB and 1.0 GB are left; ask for"
    ):
        cache.Cache(llm.spec, 1, 9_000_000, torch.float32)


def test_a_command_refuses_what_would_not_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a checkpoint asks for it and the user does not."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    tiny.edit_config(folder, max_position_embeddings=2**31 - 1)
    (folder / "generation_config.json").write_text('{"max_new_tokens": 80000000}')
    for chat in ([], ["--chat"]):
        assert generate.main(["--weights", str(folder), "--prompt", "Once", *chat]) == 2
        assert "asks for 80,000,000 new tokens" in capsys.readouterr().err
        assert generate.main(["--weights", str(folder), "--prompt", "Once", "--max-new-tokens", "3", *chat[1:]]) == 0
        capsys.readouterr()
