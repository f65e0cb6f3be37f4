"""A decode step recorded once and replayed for every token: as a CUDA graph on a GPU, on a tape on a CPU.

For a few rows a step is hundreds of calls of some microseconds each, and the host cannot issue them as fast as they
run; a graph is one call. It repeats the same kernels with the same arguments on the same memory, so what changes from
step to step must lie in memory: the tokens, and the position of each row, from which the step itself finds the angles,
the slots of the caches and how far attention reads (`Visibility.position_B`).
"""

from __future__ import annotations

import itertools
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.modules import module as everywhere

from minillm.model.cache import Cache
from minillm.model.decoder import Decoder
from minillm.ops import reference
from minillm.ops.cpu import usable


class Recording(Protocol):
    def replay(self) -> None: ...


Run = Callable[[], Tensor]
Record = Callable[[Run, torch.device], tuple[Recording, Tensor]]  # and what the run has returned, to be overwritten


def recorder(model: Decoder) -> Record | None:
    """What records a step of this model; None where nothing does: the plain ops would read the whole capacity of a
    cache whose length only memory knows, and Triton's interpreter leaves nothing behind."""
    if model.ops.attention is reference.attention:
        return None
    if model.embedding.weight.device.type == "cuda":
        return cuda_graph
    return on_tape if model.ops.attention.__module__ == "minillm.ops.cpu.ops" else None


class Watched:
    """The Python that a user may have put into a model's pass, which a replay would leave out: hooks of its modules or
    of all modules, a `forward` put into a module in the place of its class's, and modules or classes' forwards that
    are neither ours nor PyTorch's, as far as they were there when the text began."""

    def __init__(self, model: Decoder):
        own = [vars(module) for module in model.modules()]
        self.hooks = [each[name] for each in own for name in ("_forward_hooks", "_forward_pre_hooks")]
        self.hooks += [everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks]
        self.attributes = own
        forwards = {type(module).forward.__module__ for module in model.modules()}
        self.replaced = not all(name.startswith(("minillm.", "torch.")) for name in forwards)

    def __bool__(self) -> bool:
        """Whether there is any now: some microseconds for hundreds of modules."""
        return (
            self.replaced
            or any(self.hooks)
            or any(map(operator.contains, self.attributes, itertools.repeat("forward")))
        )


def step(model: Decoder, tokens_B: Tensor, cache: Cache) -> Tensor:
    """From one token per row, int64 `[B]`, to the logits `[B, V]` that follow; the cache grows by one."""
    return model(tokens_B[:, None], cache)[:, -1]


class DecodeGraph:
    """`step`, recorded and replayed. The logits `[B, V]` are overwritten by the next call.

    Only a step that is like the one before it in all that the host decides is recorded: the number of rows, where the
    caches lie, what rotary frequencies go by. So the first step goes as it is, and compiles and tunes the kernels;
    where frequencies change once, as LongRoPE's do, the step is recorded anew, and where they change with every
    position, as those of dynamic scaling, it never is.

    Nor is a step through the user's own Python (`Watched`), or in a process where loops cannot run: each goes as it is,
    whenever that came about, and what was recorded before serves again where it is gone.
    """

    def __init__(self, model: Decoder, record: Record):
        self.model, self.record, self.watched = model, record, Watched(model)
        self.recording: Recording | None = None
        self.decided: object = None
        self.held: list[Tensor] = []
        self.refused = False  # the recording failed

    def __call__(self, tokens_B: Tensor, cache: Cache) -> Tensor:
        if self.watched or (self.record is on_tape and not usable.to_record()):
            return step(self.model, tokens_B, cache)
        held = self._held(cache)
        decided = len(tokens_B), [id(each) for each in held]  # of what is held: nothing else can have its number
        same, self.decided, self.held = decided == self.decided, decided, held
        if not same:
            self.recording = None
        elif self.recording is None and not self.refused:
            self._record(tokens_B, cache)
        if self.recording is None:
            return step(self.model, tokens_B, cache)
        assert cache.length < cache.capacity, f"{cache.length + 1} positions in a cache of {cache.capacity}"
        self.tokens_B.copy_(tokens_B)
        self.position_B.fill_(cache.length)
        self.recording.replay()
        cache.length += 1
        return self.logits_BV

    def _held(self, cache: Cache) -> list[Tensor]:
        """What a recording reads that may be exchanged under it; of caches the first will do, as all move."""
        first = next((each for each in cache.layers if each is not None), None)
        parts = first if isinstance(first, tuple) else (first,)
        cached = (*(each for part in parts if part for each in vars(part).values()), cache.padding_B)
        return [*(each for each in cached if isinstance(each, Tensor)), *self.model.turning(cache)]

    def _record(self, tokens_B: Tensor, cache: Cache) -> None:
        """Record, or say in one line why not. The steps that are really made meanwhile write what the step to come will
        write again."""
        self.tokens_B, self.position_B = tokens_B.clone(), torch.full_like(tokens_B, cache.length)
        run = partial(self.model.decode_at, self.tokens_B, self.position_B, cache)
        try:
            self.recording, self.logits_BV = self.record(run, tokens_B.device)
        except RuntimeError as reason:
            self.refused = True
            why = str(reason).partition("\n")[0]
            print(f"minillm: decode steps go call by call, none is recorded: {why}", file=sys.stderr)


# Held while a graph is recorded, and by whoever uses the device from another thread meanwhile in ways that recording
# forbids: waiting for it is an error then, in all threads.
RECORDING = threading.Lock()


def cuda_graph(run: Run, device: torch.device) -> tuple[Recording, Tensor]:
    """Raises RuntimeError where the host waits for the device."""
    with RECORDING:
        return _recorded(run, device)


def _recorded(run: Run, device: torch.device) -> tuple[Recording, Tensor]:
    current, graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
    side = torch.cuda.Stream(device)
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            run()  # compiles what the step before did not need, and lets libraries allocate what they keep
            with _no_waiting():
                run()
        # What other threads do, allocate memory for a picture say, is no error of this one.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            result = run()
    finally:
        current.wait_stream(side)
    return graph, result


def on_tape(run: Run, device: torch.device) -> tuple[Recording, Tensor]:
    """Raises RuntimeError where the step depends on values that the host has read."""
    from minillm.engine.tape import Tape

    with Tape() as made:
        result = run()
    return made, result


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raises RuntimeError where the host waits for the device, while that does no harm: in a recording it would leave
    the stream unusable."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
