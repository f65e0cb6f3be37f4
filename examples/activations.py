"""What stands between the two halves of a feed-forward: the activations, and the gate that multiplies.

    python examples/activations.py [--plot activations.png]

Left: silu, gelu and its tanh approximation. Middle: silu(gate) * up as a surface, what the next matrix is given.
Right: the clamped variant of gpt-oss. The lines printed say how far the approximation is from gelu, and how the
products of the demo model are spread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import study
import torch
from torch import Tensor

import minillm
from minillm.ops.activations import activate
from minillm.ops.reference import gated_act
from minillm.report import observe, picture
from minillm.spec import Activation, ClampedSwiGLU

NAMES: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh")
CLAMPED = ClampedSwiGLU(alpha=1.702, limit=7.0)  # the numbers of gpt-oss
PROMPT = "Once upon a time there was a clever owl named Pip. One day Pip found a red ball in the garden."


def surface(activation: Activation | ClampedSwiGLU, x: Tensor) -> Tensor:
    """`[N, N]`: up runs down the rows and gate along the columns, both over x `[N]`."""
    up, gate = torch.meshgrid(x, x, indexing="ij")
    return gated_act(torch.stack((gate, up), dim=-1), activation)[..., 0]


def draw(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, *maps = figure.subplots(1, 3)
    x = torch.linspace(-5, 3, 200)
    for name, colour, style in zip(NAMES, picture.COLOURS, ("-", "--", ":"), strict=False):
        left.plot(x, activate(x, name), style, color=colour, label=name, linewidth=2)
    left.set(xlabel="x", title="Activations", ylim=(-0.5, 3))
    left.axhline(0, color="black", linewidth=0.6)
    left.legend()
    x, titles = torch.linspace(-10, 10, 201), ("silu(gate) · up", "the clamped one of gpt-oss")
    for axes, activation, title in zip(maps, ("silu", CLAMPED), titles, strict=True):
        drawn = surface(activation, x)
        image = axes.contourf(x, x, drawn, levels=range(-100, 101, 10), cmap=picture.DIVERGING)
        axes.set(xlabel="gate", ylabel="up", title=title)
    figure.colorbar(image, ax=maps, label="product")
    picture.save(figure, path)


@torch.inference_mode()
def measure(_: argparse.Namespace) -> study.Draw:
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    gap = (activate(x, "gelu") - activate(x, "gelu_tanh")).abs()
    low = activate(x, "silu").min(dim=0)
    print(f"gelu and gelu_tanh differ by {gap.max():.1e} at most, at |x| = {x[gap.argmax()].abs():.2f}")
    print(f"silu falls to {low.values:.4f} at {x[low.indices]:.3f}, and rises to 0 again to the left")
    print(f"the clamped one is at most {surface(CLAMPED, torch.tensor([-1e3, 1e3])).max():.2f}, whatever it is given")
    llm = minillm.load(dtype="float32", kernels="reference")
    with observe.ops(llm.model, "gated_act") as calls:
        llm.model(torch.tensor([llm.tokenizer.encode(PROMPT)]))
    for layer, call in enumerate(calls):
        gate, _ = call.given[0].chunk(2, dim=-1)
        squares = call.result[0].square().sort(dim=-1, descending=True).values
        most = (squares.cumsum(-1) < 0.9 * squares.sum(-1, keepdim=True)).float().mean().item()
        print(f"layer {layer}: {(gate > 0).float().mean():.0%} of the gates positive; ", end="")
        print(f"{most:.0%} of the products of a token hold 90 % of its sum of squares")
    return draw


if __name__ == "__main__":
    study.main(study.parser(__doc__, "them"), measure)
