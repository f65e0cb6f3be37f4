"""Print how close minillm and transformers are, per row of `helpers/rows.py`, as the table in the README:

python tests/parity_report.py [FAMILY ...]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import transformers

import minillm
from tests.helpers import tiny
from tests.helpers.oracles import Routes, played, recorded


@torch.no_grad()
def measure(row: str) -> tuple[float, float, float]:
    """(largest fp32 difference, largest fp32 logit, our bf16 error over theirs) on 4 x 40 tokens, all sent to the
    experts that transformers chooses in fp32, and in bf16 to the keys."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = tiny.save(folder, *tiny.ROWS[row])
        tokens = tiny.tokens(tiny.BASE["vocab_size"], 4, 40)
        with recorded(theirs) as routes:
            exact = tiny.logits(theirs, tokens)
        models = (minillm.load(folder).model, minillm.load(folder, dtype="bfloat16").model)
        exactly, ours, their_bf16 = (
            run(model, tokens, routes) for model in (*models, tiny.reference(folder, torch.bfloat16))
        )
        difference = (exactly - exact).abs().max()
        ratio = (ours - exact).square().mean().sqrt() / (their_bf16 - exact).square().mean().sqrt()
        return float(difference), float(exact.abs().max()), float(ratio)


def run(model: Any, tokens: torch.Tensor, routes: Routes) -> torch.Tensor:
    with played(model, routes):
        out = model(tokens)
    return getattr(out, "logits", out).float()


def main(chosen: Sequence[str]) -> None:
    transformers.utils.logging.disable_progress_bar()
    families: dict[str, list[tuple[float, float, float]]] = {}
    for row in tiny.ROWS:
        if not chosen or tiny.ROWS[row][0] in chosen:
            families.setdefault(tiny.ROWS[row][0], []).append(measure(row))
    print("| family | variants | largest fp32 difference of a logit | largest logit | bf16 error, ours over theirs |")
    print("|---|---|---|---|---|")
    for family, found in families.items():
        difference, size, _ = (max(values) for values in zip(*found, strict=True))
        low, high = min(ratio for *_, ratio in found), max(ratio for *_, ratio in found)
        ratios = " to ".join(sorted({f"{low:.2f}", f"{high:.2f}"}))
        print(f"| {family} | {len(found)} | {difference:.1e} | {size:.1f} | {ratios} |")


if __name__ == "__main__":
    main(sys.argv[1:])
