"""What a process holds in memory at most while it loads a checkpoint or merges an adapter; see `tests/test_memory.py`.

python -m tests.helpers.peaks load PATH KERNELS [SCHEME]
python -m tests.helpers.peaks merge ARGUMENT …      # of `minillm merge`
"""

from __future__ import annotations

import sys

import torch

import minillm
from minillm import merge
from minillm.report.measure import peak_memory

CPU = torch.device("cpu")


def load(path: str, kernels: str, scheme: str | None = None) -> None:
    """Bytes before, until it is loaded, and until it has generated; those of the parameters; the dtype."""
    imported = peak_memory(CPU)
    llm = minillm.load(path, kernels=kernels, quantize=scheme)
    loaded, sizes = peak_memory(CPU), sum(each.nbytes for each in llm.model.parameters())
    if kernels == "reference":  # the other's loops are compiled at first
        llm.generate(prompt_ids=[1, 2, 3], max_new_tokens=2)
    print(imported, loaded, peak_memory(CPU), sizes, llm.model.dtype)


if __name__ == "__main__":
    if sys.argv[1] == "load":
        load(*sys.argv[2:])
    else:
        imported = peak_memory(CPU)
        assert merge.main(sys.argv[2:]) == 0
        print(imported, peak_memory(CPU))
