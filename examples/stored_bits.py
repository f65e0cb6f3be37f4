"""What 256 weights take in each format, byte by byte: the numbers themselves, and what says how large they are.

    python examples/stored_bits.py [--plot stored-bits.png]

A block of a GGUF file is drawn in the order in which it lies there. GPTQ, AWQ, NF4 and FP8 keep numbers, scales and
zeros in tensors of their own: drawn is the share of each that belongs to a group, of 128 weights in GPTQ and AWQ.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import study

from minillm.report import picture
from minillm.weights.gguf.kinds import KINDS

WEIGHTS = 256
NUMBERS, SCALES, OUTER, MINIMA, ZEROS = "numbers", "scales", "scales of scales", "minima", "zeros"
COLOURS = dict(zip((NUMBERS, SCALES, OUTER, MINIMA, ZEROS), ("#56B4E9", "#D55E00", "#000000", "#009E73", "#CC79A7"),
                   strict=True))  # fmt: skip
Part = tuple[str, float]  # what it is, and its bytes
# Format -> weights of a block or group, and its parts.
FORMATS: dict[str, tuple[int, list[Part]]] = {
    "Q8_0": (32, [(SCALES, 2), (NUMBERS, 32)]),
    "Q6_K": (256, [(NUMBERS, 128), (NUMBERS, 64), (SCALES, 16), (OUTER, 2)]),
    "Q4_K": (256, [(OUTER, 2), (OUTER, 2), (SCALES, 6), (MINIMA, 6), (NUMBERS, 128)]),
    "Q4_0": (32, [(SCALES, 2), (NUMBERS, 16)]),
    "FP8, blocks of 128 x 128": (WEIGHTS, [(NUMBERS, 256), (SCALES, 4 * WEIGHTS / 128**2)]),
    "NVFP4": (16, [(NUMBERS, 8), (SCALES, 1)]),
    "MXFP4": (32, [(SCALES, 1), (NUMBERS, 16)]),
    "GPTQ, 4 bits": (128, [(NUMBERS, 64), (ZEROS, 0.5), (SCALES, 2)]),
    "AWQ": (128, [(NUMBERS, 64), (ZEROS, 0.5), (SCALES, 2)]),
    "NF4, double": (64, [(NUMBERS, 32), (SCALES, 1), (OUTER, 4 / 256)]),
}


def bits(name: str, role: str | None = None) -> float:
    """Of a weight, all or those of one role."""
    count, parts = FORMATS[name]
    return 8 * sum(size for each, size in parts if role in (None, each)) / count


def check() -> None:
    """Raises ValueError where a block is not as large as the reader of GGUF files has it."""
    for kind in KINDS.values():
        if kind.name in FORMATS and Fraction(8 * kind.nbytes, kind.block) != Fraction(bits(kind.name)):
            raise ValueError(f"{kind.name} has {8 * kind.nbytes / kind.block} bits for a weight, not {bits(kind.name)}")


def draw(path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    names = sorted(FORMATS, key=bits)
    for row, name in enumerate(names):
        count, parts = FORMATS[name]
        at = 0.0
        for _ in range(WEIGHTS // count):
            for role, size in parts:
                axes.barh(row, size, left=at, height=0.7, color=COLOURS[role], linewidth=0)
                at += size
            axes.plot([at, at], [row - 0.35, row + 0.35], color="white", linewidth=0.5)  # where a block ends
        axes.annotate(f"{bits(name):.2f} bits", (at, row), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=f"bytes of {WEIGHTS} weights, and bits of each", xlim=(0, 300))
    axes.legend(handles=[Patch(color=colour, label=role) for role, colour in COLOURS.items()], loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    picture.save(figure, path)


def measure(arguments: argparse.Namespace) -> study.Draw:
    check()
    print(f"{'bits for a weight':26}{'all':>8}" + "".join(f"{role:>18}" for role in COLOURS))
    for name in sorted(FORMATS, key=bits):
        print(f"{name:26}{bits(name):8.3f}" + "".join(f"{bits(name, role):18.3f}" for role in COLOURS))
    return draw


if __name__ == "__main__":
    study.main(study.parser(__doc__, "the bytes of each format"), measure)
