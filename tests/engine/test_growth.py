"""A cache grows as text comes: what may never come takes no memory, and growing changes nothing of what comes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import generate
from minillm.engine import batch, speculative
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
                list(batch.generate(model, rows, timings, deterministic=True))
            else:
                guess = Draft(model, model, rows[0], timings) if way == "draft" else PromptLookup(2)
                list(speculative.generate(model, rows[:1], timings, lambda row, guess=guess: guess, 4, True))
        found.append((texts(rows), heard.logits))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    assert all(torch.equal(found[0][1][key], found[1][1][key]) for key in found[0][1])


def test_what_never_comes_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config and a generation_config that speak of millions of tokens: the first ones come at once."""
    made = []
    fill = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **options: made.append(shape) or fill(*shape, **options))
    llm = minillm.load(DEMO)
    llm.generation_config = {"max_new_tokens": 80_000_000}
    object.__setattr__(llm.spec, "context", 2**31 - 1)
    pieces = llm.stream("Once upon a time")
    assert "".join(next(pieces) for _ in range(3))
    assert max(shape[0][2] for shape in made if isinstance(shape[0], tuple) and len(shape[0]) == 4) < 5000


def test_a_cache_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    llm = minillm.load(DEMO)
    with pytest.raises(
        ValueError, match=r"a cache of 1 x 9,000,000 positions takes .* GB and 1.0 GB are left; ask for"
    ):
        cache.Cache(llm.spec, 1, 9_000_000, torch.float32)


def test_what_is_left_of_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine, the control group (files that it holds are given back) and the process: the least."""
    said = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable:    700 kB\n",
        "/sys/fs/cgroup/memory.max": "600000\n",
        "/sys/fs/cgroup/memory.current": "500000\n",
        "/sys/fs/cgroup/memory.stat": "anon 1\nfile 300000\n",
        "/proc/self/limits": "Max address space         unlimited            unlimited            bytes\n",
    }
    monkeypatch.setattr(memory, "_text", lambda path: said.get(path, ""))
    assert memory.available() == 400_000
    said["/sys/fs/cgroup/memory.max"] = "max"
    assert memory.available() == 700 * 1024
    said["/proc/self/limits"] = "Max address space         900000               unlimited            bytes\n"
    said["/proc/self/status"] = "VmSize:\t     800 kB\n"
    assert memory.available() == 900_000 - 800 * 1024
    said.clear()
    assert memory.available() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
