"""Print how close minillm and transformers are, per row of tiny.ROWS, as the table in the README:

python tests/parity_report.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
import torch
import transformers

import minillm


@torch.no_grad()
def measure(row: str) -> tuple[float, float, float]:
    """(largest fp32 difference, largest fp32 logit, our bf16 error over theirs) on 4 x 40 tokens."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = tiny.save(folder, *tiny.ROWS[row])
        tokens = tiny.tokens(tiny.BASE["vocab_size"], 4, 40)
        exact = tiny.logits(theirs, tokens)
        difference = (minillm.load(folder).model(tokens) - exact).abs().max()
        ours = minillm.load(folder, dtype="bfloat16").model(tokens).float()
        their_bf16 = tiny.logits(tiny.reference(folder, torch.bfloat16), tokens)
        ratio = (ours - exact).square().mean().sqrt() / (their_bf16 - exact).square().mean().sqrt()
        return float(difference), float(exact.abs().max()), float(ratio)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    families: dict[str, list[tuple[float, float, float]]] = {}
    for row in tiny.ROWS:
        families.setdefault(tiny.ROWS[row][0], []).append(measure(row))
    print("| family | variants | largest fp32 difference of a logit | largest logit | bf16 error, ours over theirs |")
    print("|---|---|---|---|---|")
    for family, found in families.items():
        difference, size, _ = (max(values) for values in zip(*found, strict=True))
        low, high = min(ratio for *_, ratio in found), max(ratio for *_, ratio in found)
        print(f"| {family} | {len(found)} | {difference:.1e} | {size:.1f} | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    main()
