"""Sparse attention that is left out: as long as an indexer leaves all keys to a query, dense attention is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import minillm
from tests.helpers import tiny

SEEN = 16
INDEXED: dict[str, dict[str, Any]] = {  # each leaves 16 keys to a query
    "deepseek_v32": {"index_topk": SEEN},
    "glm_moe_dsa": {"index_topk": SEEN},
    "minimax_m3-indexed": {"index_block_size": 4, "index_topk_blocks": 4},
}


@pytest.mark.parametrize("row", INDEXED)
@torch.no_grad()
def test_the_context_ends_where_the_choice_begins(row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, values = tiny.ROWS[row]
    theirs = tiny.save(tmp_path, family, {**values, **INDEXED[row]})
    llm, tokens = minillm.load(tmp_path), tiny.tokens(97, 1, 2 * SEEN)
    assert "left out: what chooses keys in long texts, which are not read" in capsys.readouterr().err
    assert llm.spec.context == SEEN
    difference = (llm.model(tokens) - tiny.logits(theirs, tokens)).abs().amax(-1)[0]
    assert difference[:SEEN].max() <= 2e-5
    assert difference[SEEN:].max() > 1e-3
    with pytest.raises(ValueError, match=f"{SEEN}"):
        llm.generate(prompt_ids=tokens[0], max_new_tokens=1)
