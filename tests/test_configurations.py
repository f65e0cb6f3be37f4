"""hypothesis draws configurations inside each family's legal space; each must match transformers through disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import played, recorded
from spaces import FAMILIES, configurations
from torch import Tensor

import minillm
from minillm.cache import Cache

BUDGET = 2e-5


def close(ours: Tensor, theirs: Tensor, exact: Tensor) -> bool:
    """Within the budget; or, where so many roundings meet that fp32 itself is further off, no further than theirs."""
    return bool((ours - theirs).abs().max() <= max(BUDGET, 2 * (theirs - exact).abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@torch.no_grad()
def test_drawn_configuration(family: str, data: st.DataObject) -> None:
    config = data.draw(configurations(family))
    with tempfile.TemporaryDirectory() as folder:
        theirs = tiny.save(Path(folder), family, config, seed=data.draw(st.integers(0, 99)))
        llm, exactly = minillm.load(folder), tiny.reference(Path(folder), torch.float64)
    tokens = tiny.tokens(config["vocab_size"], 2, data.draw(st.integers(1, 48)))
    with recorded(theirs) as routes:
        expected = tiny.logits(theirs, tokens)
    with played(exactly, routes):
        exact = exactly(tokens).logits
    with played(llm.model, routes):
        assert close(llm.model(tokens), expected, exact)
    if tokens.shape[1] > 1:  # and cut in two, through the cache
        cut = data.draw(st.integers(1, tokens.shape[1] - 1))
        cache = Cache(llm.spec, 2, tokens.shape[1], torch.float32)
        cache.prompt_length = tokens.shape[1]
        halves = [llm.model(piece, cache) for piece in tokens.split([cut, tokens.shape[1] - cut], dim=1)]
        assert close(torch.cat(halves, 1), expected, exact)
