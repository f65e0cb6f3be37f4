"""Embeddings of the layers: what a table that is only looked up is worth, and what it costs.

    python examples/per_layer_embeddings.py [--plot per-layer-embeddings.png]

Two models learn which of 512 tokens comes after which, at random: there is nothing to it but to remember. One has a
table for its layers besides. Then the sizes of Gemma 4 E2B, and what its layers save that read others' keys and values.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import study
import torch
from torch import Tensor

from minillm.model.cache import Cache
from minillm.model.costs import active_values
from minillm.model.decoder import Decoder, next_token_loss, skeleton
from minillm.report import picture
from minillm.spec import GQA, KV, Embedding, GatedMLP, Layer, Norm, PerLayer, Rope
from minillm.spec import Decoder as Spec

TOKENS, STEPS = 512, 200
NORM = Norm(1e-6)
LENGTHS = tuple(1024 * 2**n for n in range(8))


def small(told: bool, width: int) -> Spec:
    """Two layers of a width."""
    attention = GQA(2, 1, 8, Rope(8, 1e4))
    layers = (Layer(NORM, attention, NORM, GatedMLP(2 * width, "gelu_tanh")),) * 2
    per_layer = PerLayer(TOKENS, 2, 16, NORM, "gelu_tanh") if told else None
    scaled = Embedding(width**0.5)
    return Spec(TOKENS, width, layers, NORM, tied=True, context=64, embedding=scaled, per_layer=per_layer)


def learned(spec: Spec) -> tuple[list[float], int]:
    """The loss after each step, and how many values of matrices a token is multiplied with."""
    torch.manual_seed(0)
    model, successor = Decoder(spec), torch.randperm(TOKENS)
    pairs = torch.stack((torch.arange(TOKENS), successor), dim=1)
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-2), list[float]()
    for _ in range(STEPS):
        loss = next_token_loss(model(pairs), pairs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, sum(active_values(model).values())


def e2b() -> Spec:
    """The text model of Gemma 4 E2B: 35 layers, of which the last 20 read the keys and values of layers 13 and 14."""
    norm = Norm(1e-6, cast="after_weight")
    layers = []
    for i in range(35):
        full = i % 5 == 4
        size, kv = (512 if full else 256), KV(layer=None if i < 15 else 14 if full else 13)
        attention = GQA(8, 1, size, Rope(size, 1e6 if full else 1e4), None if full else 512, kv=kv)
        layers.append(Layer(norm, attention, norm, GatedMLP(6144 if i < 15 else 12288, "gelu_tanh"), norm, norm))
    told = PerLayer(262144, 35, 256, norm, "gelu_tanh")
    return Spec(262144, 1536, tuple(layers), norm, tied=True, context=131072, per_layer=told)


def cached(spec: Spec, length: int) -> int:
    """Bytes of a bf16 cache with room for so many positions of one text."""
    cache = Cache(spec, batch=1, capacity=length, dtype=torch.bfloat16, device="meta")
    return sum(each.nbytes for layer in cache.layers for each in vars(layer).values() if isinstance(each, Tensor))


def apart(spec: Spec) -> Spec:
    """The same where each layer keeps its own."""
    own = tuple(replace(layer, attention=replace(layer.attention, kv=KV())) for layer in spec.layers)
    return replace(spec, layers=own)


def draw(path: Path, curves: dict[str, list[float]], spec: Spec) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, losses), colour in zip(curves.items(), picture.COLOURS, strict=False):
        left.plot(losses, color=colour, label=name)
    left.set(xlabel="step", ylabel="loss in nats", title=f"{TOKENS} random successors", yscale="log")
    for made, colour, marker, name in zip(
        (apart(spec), spec), picture.COLOURS, picture.MARKERS, ("35 layers", "15 of 35"), strict=False
    ):
        right.plot(LENGTHS, [cached(made, n) / 1e6 for n in LENGTHS], color=colour, marker=marker, label=name)
    right.set(xlabel="positions", ylabel="MB of cache in bf16", title="Gemma 4 E2B: layers that keep keys and values")
    right.set_xscale("log", base=2)
    right.set_xticks(LENGTHS, [f"{n // 1024}k" for n in LENGTHS])
    right.set_yscale("log")
    for axes in (left, right):
        axes.title.set_fontsize(10)
        axes.legend(fontsize=8)
    picture.save(figure, path)


def measure(_: argparse.Namespace) -> study.Draw:
    models = {"6 wide": small(False, 6), "6 wide, and a table": small(True, 6), "7 wide": small(False, 7)}
    curves = {}
    for name, spec in models.items():
        curves[name], active = learned(spec)
        print(f"{name:21} {active:6,} values a token: loss {curves[name][-1]:.3f} after {STEPS} steps")
    spec = e2b()
    model = skeleton(spec, torch.bfloat16)
    assert model.per_layer is not None
    assert spec.per_layer is not None
    table, total = model.per_layer.embedding.weight.numel(), sum(each.numel() for each in model.parameters())
    row = spec.per_layer.layers * spec.per_layer.size
    print(
        f"E2B: {table / 1e9:.2f} B of {total / 1e9:.2f} B values in the layers' table, of which a token reads {row:,}"
    )
    for length in (1024, 32768, 131072):
        both = cached(apart(spec), length) / 1e6, cached(spec, length) / 1e6
        print(f"{length:7,} positions: {both[0]:7.1f} MB where 35 layers keep their own, {both[1]:6.1f} MB where 15 do")
    return lambda path: draw(path, curves, spec)


if __name__ == "__main__":
    study.main(study.parser(__doc__, "both"), measure)
