"""How five published models stretch their rotary positions to long contexts: each pair's wavelength, before and after.

    python examples/rope_scalings.py [--plot rope.png]

A pair of values turns by its frequency f with each position and is back after a wavelength of 2 pi / f positions. Pairs
that turn often within the trained context tell near positions apart and should stay as they are; those that never
turned once would reach angles that training has not seen. The numbers are those of the published config.json files.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import study
from torch import Tensor

from minillm.model.rope import frequencies
from minillm.report import picture
from minillm.spec import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling

# Phi-3-mini-128k: what each of its 48 frequencies is divided by past 4096 positions.
LONG_FACTORS = (
    1.07, 1.12, 1.15, 1.42, 1.57, 1.80, 2.13, 2.13, 3.01, 5.91, 6.95, 9.07, 9.93, 10.71, 11.13, 14.61,
    15.41, 19.81, 37.28, 38.28, 38.60, 40.12, 46.20, 50.94, 53.66, 54.94, 56.90, 57.29, 59.99, 60.87, 60.89, 61.72,
    62.92, 62.96, 63.42, 63.82, 63.84, 63.90, 63.94, 64.07, 64.11, 64.12, 64.15, 64.19, 64.24, 64.57, 64.69, 64.76,
)  # fmt: skip
# Name -> the trained context, the length looked at, and the rotary embedding.
MODELS = {
    "linear: Gemma 3 4B, global layers, factor 8": (32768, 131072, Rope(256, 1e6, scaling=LinearScaling(8.0))),
    "dynamic: factor 2, no published model here": (4096, 16384, Rope(128, 1e4, scaling=DynamicScaling(2.0, 4096))),
    "llama3: Llama 3.1 8B, factor 8": (8192, 131072, Rope(128, 5e5, scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))),
    "yarn: DeepSeek-V3, factor 40": (4096, 163840, Rope(64, 1e4, scaling=YarnScaling(40.0, 4096, 1.0))),
    "longrope: Phi-3-mini-128k": (
        4096, 131072, Rope(96, 1e4, scaling=LongRopeScaling(LONG_FACTORS, LONG_FACTORS, 4096, 1.19, 1.19)),
    ),
}  # fmt: skip


def wavelengths(rope: Rope, length: int) -> tuple[Tensor, Tensor]:
    """Positions per turn of each pair, `[dim/2]`: without the scaling, and with it at this length."""
    plain = Rope(rope.dim, rope.theta)
    return 2 * math.pi / frequencies(plain, length), 2 * math.pi / frequencies(rope, length)


def draw(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, (trained, length, rope)), colour, marker in zip(
        MODELS.items(), picture.COLOURS, picture.MARKERS, strict=False
    ):
        before, after = wavelengths(rope, length)
        place, every = [i / (len(before) - 1) for i in range(len(before))], len(before) // 8
        kind = name.split(":")[0]
        left.plot(place, before / trained, color=colour, marker=marker, markevery=every, label=kind)
        right.plot(place, after / before, color=colour, marker=marker, markevery=every, label=kind)
    left.axhline(1, color="black", linewidth=0.8, linestyle="--")
    left.annotate("one turn in the trained context", (0.02, 1.3), fontsize=9)
    left.set(yscale="log", ylabel="wavelength / trained context", title="Before scaling")
    right.set(yscale="log", ylabel="wavelength after / before", title="What the scaling does")
    right.set_yticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
    right.minorticks_off()
    right.legend(fontsize=9)
    for axes in (left, right):
        axes.set_xlabel("pair of values, from the fastest (0) to the slowest (1)")
        axes.grid(alpha=0.3)
    picture.save(figure, path)


def measure(_: argparse.Namespace) -> study.Draw:
    print("                                             pairs  kept  between  longest  slowest pair's wavelength")
    for name, (_, length, rope) in MODELS.items():
        before, after = wavelengths(rope, length)
        ratio = after / before
        kept, full = int((ratio < 1.01).sum()), int((ratio > 0.99 * ratio.max()).sum())
        between = len(ratio) - kept - full
        print(f"{name:45}{len(ratio):5}{kept:6}{between:9}{full:9}  {before[-1]:,.0f} -> {after[-1]:,.0f}")
    return draw


if __name__ == "__main__":
    study.main(study.parser(__doc__, "them"), measure)
