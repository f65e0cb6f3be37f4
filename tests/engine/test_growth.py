"""Text that may never come takes no memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import minillm
from minillm import generate
from minillm.guard import memory
from minillm.hub import DEMO
from minillm.model import cache
from tests.helpers import tiny


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
