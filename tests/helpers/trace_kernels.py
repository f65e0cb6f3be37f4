"""Trace decode steps through the Triton ops into graphs, without a GPU; run by test_kernels.py without the interpreter.
Tensors are fake, and PyTorch is told that Triton can run and which GPU there is, so that launches are recorded and not
made. Prints for each row how many graphs all the steps took, and how many launches the last one has; then the same of
steps whose position only the device knows."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.utils._triton
from torch._subclasses.fake_tensor import FakeTensorMode

from minillm import kernels
from minillm.families import resolve
from minillm.kernels import tuning
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder
from minillm.ops import Ops, triton
from tests.helpers.rows import BASE, ROWS

LAYERS = 2  # one of each kind
LENGTHS = (9, 10, 11, 150, 400, 1000, 1100, 2000, 3000, 6000, 8100)  # of the cache, while it grows


class H100(tuning.Gpu):
    def __init__(self) -> None:
        self.name, self.kind, self.best, self.settled = "H100", "sm_90", {}, {}


def choose_as_on_a_gpu() -> None:
    """Kernels choose their configuration as for tensors on a GPU, though these are on a CPU."""
    tuning._gpus[0] = H100()
    source = inspect.getsource(tuning.run)
    for here, there in (('device.type != "cuda"', "False"), ("prepare(device)", "prepare(torch.device('cuda', 0))")):
        assert here in source
        source = source.replace(here, there)
    exec(source, tuning.__dict__)
    for module in (m for m in vars(kernels).values() if inspect.ismodule(m) and hasattr(m, "run")):
        module.run = tuning.run


def traced(row: str, on_device: bool) -> tuple[int, int]:
    """Graphs and launches. Raises where tracing would break a step in two."""
    family, overrides = ROWS[row]
    sizes = {"max_position_embeddings": 16384, "num_hidden_layers": LAYERS}
    spec, _, _ = resolve({**BASE, "model_type": family, **overrides, **sizes})
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(sum("triton_kernel_wrapper" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        cache = Cache(spec, 2, 9000, torch.float32)
        model = Decoder(spec, Ops(**triton.OPS))
        step = torch.compile(model.decode_at if on_device else model, backend=keep, fullgraph=True)
        tokens_B = torch.zeros(2, dtype=torch.long)
        given = (tokens_B, tokens_B + 7) if on_device else (tokens_B[:, None],)
        for cache.length in LENGTHS:
            assert step(*given, cache).squeeze(1).shape == (2, spec.vocab_size)
    return len(graphs), graphs[-1]


torch.utils._triton.has_triton = lambda: True
choose_as_on_a_gpu()
for name in sys.argv[1:]:
    print(name, *traced(name, False), *traced(name, True), flush=True)
