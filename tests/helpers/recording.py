"""CUDA graphs without a GPU: what is computed in the `with` is recorded, op by op and launch by launch in Triton's
interpreter, and a replay repeats it with the same numbers on the same memory. As on a GPU, a step that takes a number
from Python replays the old one, and one that waits for a result of the device cannot be recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

# What reads a tensor's values on the host: each itself, or to know the size of its result.
WAITING = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "unique", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "masked_select", "bincount", "equal", "is_nonzero", "item", "histc", "argwhere",
}  # fmt: skip


class Ops(TorchDispatchMode):
    """Refuses what waits for the device, and keeps the calls in a list where it gets one."""

    def __init__(self, calls: list[tuple] | None):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        masked = "index" in op.__name__ and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_leaves(args[1:])
        )
        refuse(op._schema.name.partition("::")[2], masked or op._schema.name.partition("::")[2] in WAITING)
        result = op(*args, **kwargs)
        if self.calls is not None:
            self.calls.append((op, args, kwargs, result))
        return result


def refuse(name: str, waits: bool = True) -> None:
    if waits:
        raise RuntimeError(f"called a synchronizing CUDA operation: {name}\nand more that is known of it")


class Gpu:
    """A GPU with streams and graphs, in place of `torch.cuda`; `log` has what was asked of it, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.log, self.mode, self.modes = list[str](), 0, list[Ops]()
        self.launches: list[tuple] | None = None
        self.watching: Any = None
        launch, tolist, gpu = GridExecutor.__call__, Tensor.tolist, self

        def launched(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
            if gpu.launches is not None:
                gpu.launches.append((executor, args, kwargs, None))
            with _disable_current_modes():
                patched, gpu.modes = gpu.modes, []
                launch(executor, *args, **kwargs)
                gpu.modes = patched

        def listed(tensor: Tensor) -> Any:
            refuse("tolist", bool(gpu.modes))
            return tolist(tensor)

        monkeypatch.setattr(GridExecutor, "__call__", launched)
        monkeypatch.setattr(Tensor, "tolist", listed)
        for name in ("Stream", "CUDAGraph", "stream", "graph", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set_sync_debug_mode)

    class Stream:
        def __init__(self, device: Any):
            self.waited_for: list[Any] = []

        def wait_stream(self, other: Any) -> None:
            self.waited_for.append(other)

    class CUDAGraph:
        def __init__(self) -> None:
            self.calls: list[tuple] = []

        def replay(self) -> None:
            for call, args, kwargs, before in self.calls:
                after = call(*args, **kwargs)
                mine = {
                    each.untyped_storage().data_ptr()
                    for each in tree_leaves((args, kwargs))
                    if isinstance(each, Tensor)
                }
                for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                    if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in mine:
                        old.copy_(new)

    def current_stream(self, device: Any) -> Gpu.Stream:
        self.current = getattr(self, "current", None) or Gpu.Stream(device)
        return self.current

    @contextmanager
    def stream(self, stream: Gpu.Stream) -> Iterator[None]:
        self.log.append("warm-up")
        assert stream.waited_for == [self.current]
        yield

    @contextmanager
    def graph(self, graph: Gpu.CUDAGraph, stream: Gpu.Stream, capture_error_mode: str = "global") -> Iterator[None]:
        self.log.append("recording")
        self.launches = graph.calls
        with self.watched(graph.calls):
            yield
        self.launches = None

    @contextmanager
    def watched(self, calls: list[tuple] | None = None) -> Iterator[None]:
        with Ops(calls) as mode:
            self.modes.append(mode)
            try:
                yield
            finally:
                self.modes.pop()

    def set_sync_debug_mode(self, mode: str | int) -> None:
        self.mode = mode
        if mode == "error":
            self.log.append("waiting is an error")
            self.watching = self.watched(None)
            self.watching.__enter__()
        elif self.watching:
            self.watching.__exit__(None, None, None)
            self.watching = None
