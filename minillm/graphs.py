"""A decode step recorded once as a CUDA graph and replayed for every token.

For a few rows a step is hundreds of launches of some microseconds each, and the host cannot issue them as fast as a GPU
runs them; a graph is one launch. It repeats the same kernels with the same arguments on the same memory, so what
changes from step to step must lie in memory: the tokens, and the position of each row, from which the step itself finds
the angles, the slots of the caches and how far attention reads (`Visibility.position_B`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from minillm import reference
from minillm.cache import Cache
from minillm.model import Decoder


def decoder_step(model: Decoder, cache: Cache) -> Callable[[Tensor], Tensor]:
    """A function from one token per row, int64 `[B]` on the cache's device, to the logits `[B, V]` that follow; the
    cache grows by one. It waits for no result of the device. On a GPU, through the kernels, it is a `DecodeGraph`: the
    plain ops would read the whole capacity of a cache whose length only the device knows."""
    if cache.device.type == "cuda" and model.ops.attention is not reference.attention:
        return DecodeGraph(model, cache)
    return partial(step, model, cache)


def step(model: Decoder, cache: Cache, tokens_B: Tensor) -> Tensor:
    """The same without a graph."""
    return model(tokens_B[:, None], cache)[:, -1]


class DecodeGraph:
    """`step` over one cache, recorded and replayed. The logits `[B, V]` are overwritten by the next call.

    Only a step that is like the one before it in all that the host decides is recorded: the number of rows, where the
    caches lie, what rotary frequencies go by. So the first step goes as it is, and compiles and tunes the kernels;
    where frequencies change once, as LongRoPE's do, the graph is recorded anew, and where they change with every
    position, as those of dynamic scaling, there is none.
    """

    def __init__(self, model: Decoder, cache: Cache):
        self.model, self.cache = model, cache
        self.graph: torch.cuda.CUDAGraph | None = None
        self.decided: object = None
        self.held: list[Tensor] = []
        self.refused = False  # the recording failed

    def __call__(self, tokens_B: Tensor) -> Tensor:
        held = self._held()
        decided = len(tokens_B), [id(each) for each in held]  # of what is held: nothing else can have its number
        same, self.decided, self.held = decided == self.decided, decided, held
        if not same:
            self.graph = None
        elif self.graph is None and not self.refused:
            self._record(tokens_B)
        if self.graph is None:
            return step(self.model, self.cache, tokens_B)
        length, capacity = self.cache.length, self.cache.capacity
        assert length < capacity, f"{length + 1} positions in a cache of {capacity}"
        self.tokens_B.copy_(tokens_B)
        self.position_B.fill_(length)
        self.graph.replay()
        self.cache.length += 1
        return self.logits_BV

    def _held(self) -> list[Tensor]:
        """What the graph reads that may be exchanged under it; of the cache the first layer will do, as all move."""
        cached = (*vars(self.cache.layers[0]).values(), self.cache.padding_B)
        return [*(each for each in cached if isinstance(each, Tensor)), *self.model.turning(self.cache)]

    def _record(self, tokens_B: Tensor) -> None:
        """Make the graph, or say in one line why there is none. The steps that are really made meanwhile write what the
        step to come will write again."""
        self.tokens_B, self.position_B = tokens_B.clone(), torch.full_like(tokens_B, self.cache.length)
        run = partial(self.model.decode_at, self.tokens_B, self.position_B, self.cache)
        current, graph = torch.cuda.current_stream(tokens_B.device), torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(tokens_B.device)
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                run()  # compiles what the step before did not need, and lets libraries allocate what they keep
                with _no_waiting():
                    run()
            with torch.cuda.graph(graph, stream=side):
                self.logits_BV = run()
            self.graph = graph
        except RuntimeError as reason:
            self.refused = True
            why = str(reason).partition("\n")[0]
            print(f"minillm: decode steps are launched one by one, not as a CUDA graph: {why}", file=sys.stderr)
        current.wait_stream(side)


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
