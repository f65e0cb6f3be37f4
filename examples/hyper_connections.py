"""What residual streams do over depth: how far mixes of them may grow, and what they cost.

    python examples/hyper_connections.py [--plot streams.png]

Each part of a layer mixes four streams, x_j = sum_i C_ij x_i, so 43 layers make a product of 86 mixes. Free
ones multiply what they get; those whose rows and columns sum to 1 cannot, nor can a product of them. How near to that
Sinkhorn and Knopp's rounds come, and what a decoder of DeepSeek-V4-Flash's sizes pays for its streams.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import study
import torch
from torch import Tensor

from minillm.families import resolve
from minillm.model.costs import active_values
from minillm.model.outline import outline
from minillm.model.residual.streams import balanced
from minillm.report import picture
from minillm.spec import HyperConnections

STREAMS, PARTS, EPS = 4, 86, 1e-6


def logits() -> Tensor:
    """What learned mixes might be made of, `[86, 4, 4]`: each stream keeps most of itself."""
    noise = torch.randn(PARTS, STREAMS, STREAMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise + 2 * torch.eye(STREAMS, dtype=torch.float64)


def rounds(count: int) -> Callable[[Tensor], Tensor]:
    return lambda made: balanced(made.softmax(-1) + EPS, count, EPS)


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "free": lambda made: made / 2,
    "rows sum to 1": lambda made: made.softmax(-1),
    "1 round": rounds(1),
    "20 rounds": rounds(20),
}


def gains(mixes: Tensor) -> tuple[list[float], list[float]]:
    """By how much the largest stream may have grown after each mix, and a gradient in the backward pass."""
    total, forward, back = torch.eye(STREAMS, dtype=torch.float64), [], []
    for mix in mixes:
        total = total @ mix
        forward.append(total.abs().sum(0).max().item())
        back.append(total.abs().sum(1).max().item())
    return forward, back


def draw(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    one, two = figure.subplots(1, 2)
    for (name, made), colour in zip(MIXES.items(), picture.COLOURS, strict=False):
        for axes, found in zip((one, two), gains(made(logits())), strict=True):
            axes.plot(range(1, PARTS + 1), found, color=colour, label=name)
    for axes, title in ((one, "streams on their way up"), (two, "gradients on their way back")):
        axes.set(xlabel="mixes", ylabel="may be so many times as large", yscale="log")
        axes.set_title(title, fontsize=10)
    one.legend(fontsize=8)
    picture.save(figure, path)


def measure(_: argparse.Namespace) -> study.Draw:
    for name, made in MIXES.items():
        forward, back = gains(made(logits()))
        print(
            f"{name:14} after {PARTS} mixes streams may be {forward[-1]:.3g} times as large, gradients {back[-1]:.3g}"
        )
    for count in (1, 3, 20):
        rows = rounds(count)(logits()).sum(-1)
        print(f"{count:2} rounds: rows sum to 1 within {(rows - 1).abs().max():.0e}")
    decoder, _, _ = resolve({"model_type": "deepseek_v4"})
    assert isinstance(decoder.streams, HyperConnections)
    made = outline(decoder, torch.bfloat16)
    total = active_values(made.model)
    mixing = {name: value for name, value in total.items() if "_mix." in name or name.startswith("streams.")}
    print(
        f"DeepSeek-V4-Flash: a token carries {STREAMS} x {decoder.hidden_size:,} values, and goes through "
        f"{made.total(mixing) / 1e6:.1f} M values of mixes, of {made.total(total) / 1e9:.1f} G in all"
    )
    return draw


if __name__ == "__main__":
    study.main(study.parser(__doc__, "both"), measure)
