"""Trace a decode step through the Triton ops into one graph, without a GPU; run by test_kernels.py without the
interpreter. Tensors are fake, and PyTorch is told that Triton can run, so that launches are recorded and not made."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.utils._triton
from rows import BASE, ROWS
from torch._subclasses.fake_tensor import FakeTensorMode

from minillm import triton_ops
from minillm.cache import Cache
from minillm.families import resolve
from minillm.model import Decoder
from minillm.ops import Ops

torch.utils._triton.has_triton = lambda: True


def launches(row: str) -> int:
    """How many there are in the one graph of a step. Raises where tracing would break it in two."""
    family, overrides = ROWS[row]
    spec, _, _ = resolve({**BASE, "model_type": family, **overrides})
    found = 0

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal found
        found += sum("triton_kernel_wrapper" in str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        cache = Cache(spec, 2, 32, torch.float32)
        cache.length = 9
        model = torch.compile(Decoder(spec, Ops(**triton_ops.OPS)), backend=keep, fullgraph=True)
        assert model(torch.zeros(2, 1, dtype=torch.long), cache).shape == (2, 1, spec.vocab_size)
    return found


for name in sys.argv[1:]:
    print(name, launches(name))
