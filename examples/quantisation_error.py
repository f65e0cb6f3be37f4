"""What integers and FP8 do to real weights: the error of each format, and what it is paid with, in bits for a value.

    python examples/quantisation_error.py [--weights PATH] [--plot quantisation.png]

Each matrix W of the layers is quantised and dequantised to V; the error is |W - V| / |W| over all of them together. A
bit more halves it. Small groups adapt to more of the weights and cost more factors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import study
import torch
from torch import Tensor

import minillm
from minillm.report import picture
from minillm.weights import fp8
from minillm.weights.formats import fp8_blocks
from minillm.weights.ints import Int4, Int8

GROUPS = (8, 16, 32, 64, 128)


def by_integers(matrix: Tensor, made: Int8 | Int4) -> tuple[Tensor, int]:
    """The matrix as the format gives it back, and the bytes it takes."""
    fields = made.quantise(matrix)
    return made.form.values(fields), sum(part.nbytes for part in made.pack(fields).values())


def by_fp8(matrix: Tensor, block: int = fp8.BLOCK) -> tuple[Tensor, int]:
    """The same for e4m3 with a factor for each block, whose largest magnitude becomes the largest of e4m3."""
    rows, columns = (-(-size // block) * block for size in matrix.shape)
    padded = torch.zeros(rows, columns)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    blocks = padded.view(rows // block, block, columns // block, block)
    scale = (blocks.abs().amax((1, 3)) / torch.finfo(fp8.DTYPE).max).clamp(min=1e-30)
    stored = (blocks / scale[:, None, :, None]).to(fp8.DTYPE).view(rows, columns)
    stored = stored[: matrix.shape[0], : matrix.shape[1]]
    return fp8_blocks.dequantise({"": stored, fp8_blocks.SCALE: scale}, "scale"), stored.nbytes + scale.nbytes


def errors(matrices: list[Tensor]) -> list[tuple[str, float, float]]:
    """Of each format its name, its bits for a value and its relative error."""
    formats = {"int8, a factor for each row": Int8(), "fp8 (e4m3), blocks of 128 x 128": None}
    formats |= {f"int4, groups of {group}": Int4(group) for group in GROUPS}
    formats |= {f"int4 with zero points, groups of {group}": Int4(group, symmetric=False) for group in GROUPS}
    total = sum(matrix.square().sum().item() for matrix in matrices)
    found = []
    for name, made in formats.items():
        error = bits = 0.0
        for matrix in matrices:
            back, size = by_fp8(matrix) if made is None else by_integers(matrix, made)
            error += (matrix - back).square().sum().item()
            bits += 8 * size
        found.append((name, bits / sum(matrix.numel() for matrix in matrices), (error / total) ** 0.5))
    return found


def draw(path: Path, found: list[tuple[str, float, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    series = {"int4": found[2 : 2 + len(GROUPS)], "int4 with zero points": found[2 + len(GROUPS) :]}
    for (name, points), colour, marker, above in zip(series.items(), picture.COLOURS, "os", (-14, 7), strict=False):
        axes.plot(*zip(*[each[1:] for each in points], strict=True), color=colour, marker=marker, label=name)
        for group, (_, bits, error) in zip(GROUPS, points, strict=True):
            axes.annotate(str(group), (bits, error), (0, above), textcoords="offset points", ha="center", fontsize=9)
    for (name, bits, error), colour, marker in zip(found[:2], picture.COLOURS[2:], "D^", strict=False):
        axes.plot(bits, error, color=colour, marker=marker, linestyle="", markersize=9, label=name)
    axes.set(xlabel="bits for a value, factors included (numbers at points: group size)", yscale="log")
    axes.set_yticks([0.01, 0.02, 0.05, 0.1], ["1 %", "2 %", "5 %", "10 %"])
    axes.minorticks_off()
    axes.set(ylabel="relative error of the weights", ylim=(0.005, 0.2))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    picture.save(figure, path)


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> study.Draw:
    llm = minillm.load(arguments.weights, dtype="float32", kernels="reference")
    parameters = llm.model.layers.named_parameters()
    matrices = [each.flatten(0, -2) for _, each in parameters if each.dim() > 1]
    found = errors(matrices)
    print(f"{len(matrices)} matrices, {sum(matrix.numel() for matrix in matrices):,} values")
    for name, bits, error in found:
        print(f"{name:40}{bits:6.2f} bits  error {100 * error:6.2f} %")
    return lambda path: draw(path, found)


if __name__ == "__main__":
    parser = study.parser(__doc__, "error over bits")
    parser.add_argument("--weights", metavar="PATH", help="checkpoint folder (default: the built-in demo)")
    study.main(parser, measure)
