"""Positions without rotation: what attention learns of order from a table, from slopes on its scores, and from neither.

    python examples/positions.py [--plot positions.png]

Models of two layers learn to say which of seven marks stood last in a text of 32 tokens, between others that mean
nothing, and are then asked in longer texts. A table has no rows there.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import study
import torch

from minillm.model.decoder import Decoder
from minillm.report import picture
from minillm.spec import GQA, Embedding, GatedMLP, Layer, Learned, Norm, Rope, Scores
from minillm.spec import Decoder as Spec

TOKENS, WIDTH, HEADS, TRAINED, STEPS = 16, 48, 4, 32, 150
NOISE, MARKS, QUESTION = range(8), range(8, 15), 15
LENGTHS = (32, 64, 128, 256)
NORM = Norm(1e-6)
SLOPES = tuple(2.0 ** -(2 * i + 2) for i in range(HEADS))  # 2^(-8 i / 4) of heads i = 1 ... 4


def spec(attention: GQA, embedding: Embedding) -> Spec:
    layers = (Layer(NORM, attention, NORM, GatedMLP(96)),) * 2
    return Spec(TOKENS, WIDTH, layers, NORM, tied=False, context=TRAINED, embedding=embedding)


def specs() -> dict[str, Spec]:
    bare = GQA(HEADS, HEADS, WIDTH // HEADS, None)
    return {
        "rotary": spec(replace(bare, rope=Rope(WIDTH // HEADS, 1e4)), Embedding()),
        "learned": spec(bare, Embedding(positions=Learned(TRAINED))),
        "ALiBi": spec(replace(bare, scores=Scores(slopes=SLOPES)), Embedding()),
        "none": spec(bare, Embedding()),
    }


def texts(rows: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Two tokens, a question, the answer, and so on: what mark stood last, an answer being one too."""
    tokens = torch.randint(len(NOISE), (rows, length), generator=draw)
    marked = torch.rand(rows, length, generator=draw) < 0.3
    marked[:, 0] = True
    tokens[marked] = MARKS[0] + torch.randint(len(MARKS), (int(marked.sum()),), generator=draw)
    last = tokens[:, 0].clone()
    for at in range(length):
        if at % 4 == 2:
            tokens[:, at] = QUESTION
        elif at % 4 == 3:
            tokens[:, at] = last
        else:
            last = tokens[:, at].where(marked[:, at], last)
    return tokens


def missed(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """The loss of the last eight answers."""
    logits = model(tokens)[:, 2::4][:, -8:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 3::4][:, -8:].flatten())


def trained(made: Spec) -> dict[int, float]:
    """The loss at each length that the model takes. In fp64: rounding that differs between processors would be seen in
    what is printed."""
    torch.manual_seed(0)
    model, draw = Decoder(made).double(), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        optimiser.zero_grad()
        missed(model, texts(16, TRAINED, draw)).backward()
        optimiser.step()
    found = {}
    with torch.no_grad():
        for length in LENGTHS:
            try:
                found[length] = missed(model, texts(64, length, torch.Generator().manual_seed(2))).item()
            except ValueError as error:
                print(f"{'':8} {error}")
                break
    return found


def draw(path: Path, losses: dict[str, dict[int, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    distance = torch.arange(64)
    for slope, colour in zip(SLOPES, picture.COLOURS, strict=False):
        share = torch.softmax(-slope * distance, dim=0)
        left.plot(distance, share, color=colour, label=f"slope {slope:g}")
    left.set(xlabel="positions back", ylabel="share, where all products are equal", yscale="log", ylim=(1e-4, 1.2))
    left.set_title("ALiBi: four heads of different reach")
    for (name, found), colour, marker in zip(losses.items(), picture.COLOURS, picture.MARKERS, strict=False):
        right.plot(list(found), list(found.values()), color=colour, marker=marker, label=name)
    right.axhline(math.log(len(MARKS)), color="grey", linestyle=":", label="a guess")
    right.set(xlabel="tokens of the text", ylabel="loss in nats", title="Which mark stood last? Trained on 32 tokens")
    right.set_xscale("log", base=2)
    right.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
    for axes in (left, right):
        axes.title.set_fontsize(10)
        axes.legend(fontsize=8)
    picture.save(figure, path)


def measure(_: argparse.Namespace) -> study.Draw:
    print("loss at", "".join(f"{n:8}" for n in LENGTHS), "tokens")
    losses = {}
    for name, made in specs().items():
        losses[name] = trained(made)
        print(f"{name:8}", "".join(f"{loss:8.1f}" for loss in losses[name].values()))
    for slope in SLOPES:
        print(f"slope {slope:8.4f}: a position {math.log(2) / slope:5.1f} back counts half")
    return lambda path: draw(path, losses)


if __name__ == "__main__":
    study.main(study.parser(__doc__, "both"), measure)
