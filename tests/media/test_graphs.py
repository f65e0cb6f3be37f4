"""A tower runs in a thread beside the engine, which may be recording a graph: neither disturbs the other."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minillm.engine import graphs
from minillm.media.sources import source
from tests.media.recorded import loaded, picture


def test_a_tower_waits_for_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, held = loaded("qwen2_5_vl").prompts.reader, []
    usual = reader.tower.of_picture
    monkeypatch.setattr(
        reader.tower, "of_picture", lambda *given: held.append(graphs.RECORDING.locked()) or usual(*given)
    )
    monkeypatch.setattr(reader, "_kept", type(reader._kept)())
    reader.read(reader.seen(source("image", picture(), "one")))
    assert held == [True]
    assert not graphs.RECORDING.locked()


def test_a_recording_minds_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch's documentation has it: "thread_local" errors are those of the thread that records alone."""
    stream, asked, held = SimpleNamespace(wait_stream=lambda other: None), dict[str, Any](), list[bool]()

    def graph(made: Any, **options: Any) -> Any:
        asked.update(options)
        return contextlib.nullcontext()

    fakes = {
        "graph": graph, "CUDAGraph": SimpleNamespace, "Stream": lambda device: stream,
        "current_stream": lambda _: stream, "stream": lambda _: contextlib.nullcontext(),
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: None,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    result = torch.zeros(1)
    made = graphs.cuda_graph(lambda: held.append(graphs.RECORDING.locked()) or result, torch.device("cuda"))
    assert made[1] is result
    assert held == [True] * 3
    assert asked["capture_error_mode"] == "thread_local"
    assert not graphs.RECORDING.locked()


def test_what_pictures_do_not_go_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks and stages, in one line; a draft is in test_engine.py."""
    llm = loaded("qwen2_5_vl")
    monkeypatch.setattr(llm.prompts, "_reader", None)
    ranks = SimpleNamespace(count=2)
    monkeypatch.setattr(llm.model, "ops", SimpleNamespace(ranks=ranks))
    with pytest.raises(ValueError, match="do not go with --ranks or --stages; leave one of them out"):
        llm.prompts.reader  # noqa: B018
