"""The gated delta rule in four steps, each checked with numbers, and what its state costs beside a cache.

    python examples/delta_rule.py [--plot linear.png]

A matrix S that is asked with a key answers with the value stored under it. Adding up outer products mixes up keys that
are alike; the delta rule writes only what S does not answer yet; decay forgets; chunks of positions do the same with
products of matrices. Then sizes: the state of Qwen3.5's small model against the cache of a Qwen3 of its size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import study
import torch
from torch import Tensor

from minillm.model.costs import cached_values_seen, state_bytes
from minillm.ops.recurrent import delta_rule
from minillm.report import picture
from minillm.spec import GQA, Decoder, GatedDeltaNet, GatedMLP, Layer, Mixer, Norm, QKNorm, Rope

NORM = Norm(1e-6)
CONTEXTS = [2**n for n in range(7, 19)]


def decoder(*mixers: Mixer) -> Decoder:
    layers = tuple(Layer(NORM, mixer, NORM, GatedMLP(3584)) for mixer in mixers)
    return Decoder(248320, 1024, layers, NORM, tied=True, context=CONTEXTS[-1])


ATTENTION = GQA(8, 2, 256, Rope(64, 1e7), qk_norm=QKNorm(NORM), weakened="gate")
DELTA = GatedDeltaNet(16, 16, 128, 128, 4, NORM)
HYBRID = decoder(*[DELTA, DELTA, DELTA, ATTENTION] * 6)  # Qwen3.5-0.8B
FULL = decoder(*[ATTENTION] * 24)  # the same with attention everywhere


def cache_bytes(spec: Decoder, positions: int) -> int:
    """Of one sequence in bf16."""
    return 2 * cached_values_seen(spec, positions) + state_bytes(spec, width=2)


def error(state: Tensor, keys: Tensor, values: Tensor) -> float:
    """How far the answers are from what was stored, on average."""
    return float((keys @ state - values).norm(dim=-1).mean() / values.norm(dim=-1).mean())


def recall(count: int, size: int = 64) -> tuple[float, float]:
    """The same for `count` random keys of `size` values: outer products added up, and the delta rule."""
    keys = torch.nn.functional.normalize(torch.randn(count, size), dim=-1)
    values = torch.randn(count, size)
    added, corrected = keys.T @ values, torch.zeros(size, size)
    for key, value in zip(keys, values, strict=True):
        corrected += torch.outer(key, value - corrected.T @ key)
    return error(added, keys, values), error(corrected, keys, values)


def draw(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    torch.manual_seed(0)
    counts = [2**n for n in range(1, 9)]
    found = [recall(count) for count in counts]
    for which, name in enumerate(("outer products added up", "delta rule")):
        left.plot(counts, [each[which] for each in found], "o-", color=picture.COLOURS[which], label=name)
    left.set(xscale="log", xlabel="pairs stored in a state of 64 x 64", ylabel="relative error of an answer")
    left.set(title="What a state remembers")
    for spec, name, colour in ((FULL, "24 attention", picture.COLOURS[0]), (HYBRID, "18 Gated DeltaNet, 6 attention",
                                                                           picture.COLOURS[1])):  # fmt: skip
        right.plot(CONTEXTS, [cache_bytes(spec, each) / 1e6 for each in CONTEXTS], color=colour, label=name)
    right.axhline(
        state_bytes(HYBRID, width=2) / 1e6, color=picture.COLOURS[1], linestyle="--", label="its states alone"
    )
    right.set(xscale="log", yscale="log", xlabel="positions", ylabel="MB of one sequence, bf16")
    right.set(title="What is kept: 24 layers of Qwen3.5-0.8B")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    picture.save(figure, path)


def measure(_: argparse.Namespace) -> study.Draw:
    torch.manual_seed(0)
    for count in (8, 32, 128):
        print("{:3} pairs in 64 x 64: error {:.2f} where they are added up, {:.2f} by the delta rule".format(
            count, *recall(count)))  # fmt: skip
    q, k, v = (torch.randn(1, 200, 2, 16) for _ in range(3))
    g, beta, state = -torch.rand(1, 200, 2), torch.rand(1, 200, 2), torch.zeros(1, 2, 16, 16)
    together, last = delta_rule(q, k, v, g, beta, state)
    singly = []
    for t in range(200):
        o, state = delta_rule(*(each[:, t : t + 1] for each in (q, k, v, g, beta)), state)
        singly.append(o)
    far = (torch.cat(singly, dim=1) - together).abs().max()
    apart = (state - last).abs().max()
    print(f"200 positions in chunks and one by one: outputs differ by {far:.0e}, states by {apart:.0e}")
    for positions in (1024, 32768, 262144):
        sizes = [cache_bytes(spec, positions) / 1e6 for spec in (FULL, HYBRID)]
        print(f"{positions:7,} positions: {sizes[0]:8.1f} MB with attention in 24 layers, {sizes[1]:7.1f} MB in 6")
    print(f"states of 18 layers: {state_bytes(HYBRID, width=2) / 1e6:.1f} MB at any length")
    return draw


if __name__ == "__main__":
    study.main(study.parser(__doc__, "the sizes"), measure)
