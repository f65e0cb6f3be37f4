"""Memory for parameters: each has its own, begins with a line of the cache, and lies on large pages where there are
some."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.weights.memory import ALIGNMENT, HUGE_PAGE, allocator

CPU = torch.device("cpu")
shapes = st.lists(st.integers(0, 9), max_size=3).map(torch.Size)
dtypes = st.sampled_from((torch.float32, torch.bfloat16, torch.uint8))


@given(st.lists(st.tuples(shapes, dtypes), max_size=8), st.randoms())
def test_each_tensor_has_memory_of_its_own(kinds: list, random: object) -> None:
    allocate = allocator((torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in kinds), CPU)
    random.shuffle(kinds)  # type: ignore[attr-defined]
    made = [allocate(shape, dtype).fill_(number) for number, (shape, dtype) in enumerate(kinds)]
    for number, (tensor, (shape, dtype)) in enumerate(zip(made, kinds, strict=True)):
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        assert (tensor == number).all()
        assert tensor.data_ptr() % ALIGNMENT == 0


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="only Linux has this advice")
def test_large_pages_are_asked_for() -> None:
    tensor = allocator([torch.empty(4 * HUGE_PAGE, dtype=torch.uint8, device="meta")], CPU)(
        torch.Size([4 * HUGE_PAGE]), torch.uint8
    )
    assert tensor.data_ptr() % HUGE_PAGE == 0
    areas = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    places = {area: [int(end, 16) for end in area.split(" ")[0].split("-")] for area in areas}
    (area,) = [each for each, (start, end) in places.items() if start <= tensor.data_ptr() < end]
    flags = next(line for line in area.splitlines() if line.startswith("VmFlags"))
    assert "hg" in flags.split()
