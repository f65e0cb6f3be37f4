"""State spaces (Mamba 2) in three steps, each checked with numbers, and what their states cost beside a cache.

    python examples/state_spaces.py [--plot states.png]

A state that fades is attention whose scores fade: both ways of computing it agree. How fast it fades an input says by
its step: with one of nearly 0 a position leaves the state as it is, with a large one it takes the state's place. Then
sizes: those of Nemotron-H-4B, against attention in place of its state spaces.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import study
import torch
from torch import Tensor

from minillm.families import resolve
from minillm.families.shared.shapes import SHAPES
from minillm.model.costs import cached_values_seen, state_bytes
from minillm.ops import state_space
from minillm.report import picture
from minillm.spec import GQA, Decoder, StateSpace

LENGTH, MARKED = 48, (8, 20, 34)
CONTEXTS = [2**n for n in range(7, 19)]


def problem(count: int, heads: int = 2) -> tuple[Tensor, ...]:
    """x, d, A, B, C, D and a state."""
    made = torch.Generator().manual_seed(0)
    x, b, c = (torch.randn(1, count, n, 16, generator=made) for n in (heads, 1, 1))
    d, numbers = torch.rand(1, count, heads, generator=made) / 4, torch.randn(2, heads, generator=made)
    return x, d, numbers[0], b, c, numbers[1], torch.zeros(1, heads, 16, 16)


def one_by_one(x: Tensor, d: Tensor, decay: Tensor, b: Tensor, c: Tensor, skip: Tensor, state: Tensor) -> Tensor:
    parts = []
    for t in range(x.shape[1]):
        here = slice(t, t + 1)
        y, state = state_space.scan(x[:, here], d[:, here], decay, b[:, here], c[:, here], skip, state)
        parts.append(y)
    return torch.cat(parts, dim=1)


def shares(d: Tensor) -> Tensor:
    """What position i has kept of position j, and how much j has written, `[T, T]`, for e^A = 1."""
    so_far = d.cumsum(0)
    return ((so_far[None] - so_far[:, None]).exp() * d[None]).tril()


def selective() -> Tensor:
    """Steps that are large at three positions and nearly 0 elsewhere."""
    d = torch.full((LENGTH,), 0.01)
    d[list(MARKED)] = 3.0
    return d


def attending(decoder: Decoder) -> Decoder:
    """With attention wherever there is a state space."""
    attention = next(each for each in decoder.attentions if isinstance(each, GQA))
    layers = (replace(e, attention=attention) if isinstance(e.attention, StateSpace) else e for e in decoder.layers)
    return replace(decoder, layers=tuple(layers))


def nbytes(decoder: Decoder, positions: int) -> int:
    return 2 * cached_values_seen(decoder, positions) + state_bytes(decoder, 2)


def draw(path: Path, decoder: Decoder) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    one, two, three = figure.subplots(1, 3)
    for axes, d, title in (
        (one, torch.full((LENGTH,), 0.15), "every step 0.15"),
        (two, selective(), "steps that choose"),
    ):
        axes.imshow(shares(d).clamp(max=1), cmap="Blues")
        axes.set(xlabel="position j", ylabel="position i", title=f"what i has of j: {title}")
    for made, label, colour in ((attending(decoder), "attention in 28 layers", picture.COLOURS[0]),
                                (decoder, "in 4, states in 24", picture.COLOURS[1])):  # fmt: skip
        three.plot(CONTEXTS, [nbytes(made, n) / 1e6 for n in CONTEXTS], color=colour, label=label)
    three.set(xlabel="positions", ylabel="MB kept of a sequence", xscale="log", yscale="log", title="Nemotron-H-4B")
    three.legend(fontsize=8)
    for axes in (one, two, three):
        axes.title.set_fontsize(10)
    picture.save(figure, path)


def measure(_: argparse.Namespace) -> study.Draw:
    given = problem(200)
    whole = state_space.scan(*given)[0]
    near = (whole - one_by_one(*given)).abs().max() < 1e-5
    print(f"200 positions in chunks and one by one: outputs {'differ by less' if near else 'DIFFER BY MORE'} than 1e-5")
    for d in (0.001, 0.01, 0.1, 1.0):
        print(f"a step of {d:5.3f}, e^A = 1: a position {math.log(2) / d:5.1f} back counts half")
    kept = shares(selective())[-1]
    print(f"steps that choose: position {LENGTH - 1} has {kept[MARKED[-1]] / kept.sum():.0%} of position {MARKED[-1]}")
    decoder, _, _ = resolve(SHAPES["nemotron-h-4b"])
    for n in (1024, 32768, 262144):
        mixed, plain = nbytes(decoder, n) / 1e6, nbytes(attending(decoder), n) / 1e6
        print(f"{n:7,} positions: {plain:8.1f} MB with attention in 28 layers, {mixed:7.1f} MB in 4")
    print(f"states of 24 layers: {state_bytes(decoder, 2) / 1e6:.1f} MB at any length")
    return lambda path: draw(path, decoder)


if __name__ == "__main__":
    study.main(study.parser(__doc__, "all three"), measure)
