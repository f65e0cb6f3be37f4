"""The draw through the compiled loop against `minillm.ops.draw`: the very same tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.engine.sampling import Sampling, as_tensors
from minillm.ops import draw
from tests.conftest import FAST

ops = pytest.importorskip("minillm.ops.cpu.ops")


@settings(max_examples=80, **FAST)
@given(st.data())
def test_the_loop_draws_what_the_definition_draws(data: st.DataObject) -> None:
    """Vocabularies of less than a run, of some parts, and of sizes that end within one; flat and steep."""
    words = data.draw(st.integers(1, 200) | st.integers(8_000, 40_000))
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 9999)))
    logits = torch.randn(3, words, generator=made) * data.draw(st.sampled_from((0.01, 1.0, 8.0)))
    if data.draw(st.booleans()):  # only tokens at the edges of runs and parts have a chance
        logits[:, [at for at in (0, 63, 64, 8191, 8192, words - 1) if at < words]] += 100
    logits = logits.to(data.draw(st.sampled_from((torch.float32, torch.bfloat16))))
    wanted = Sampling(
        temperature=data.draw(st.floats(0.2, 3.0)),
        top_k=data.draw(st.integers(0, words + 3)),
        top_p=data.draw(st.just(1.0) | st.floats(0.01, 0.999)),
        min_p=data.draw(st.just(0.0) | st.floats(0.01, 1.0)),
    )
    seeds = torch.tensor(data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=3, max_size=3)))
    positions = torch.tensor(data.draw(st.lists(st.integers(0, 2**40), min_size=3, max_size=3)))
    given = [*as_tensors([wanted] * 3), seeds, positions]
    assert torch.equal(ops.sample(logits, *given), draw.sample(logits, *given))
