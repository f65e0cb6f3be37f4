"""RMSNorm rounds in one of two places, and in bfloat16 the outputs differ: how many, by how much, for which weights.

    python examples/norm_roundings.py [--plot norm.png]

"before_weight" rounds x / rms(x) to bf16 and multiplies it by w in bf16: two roundings. "after_weight" multiplies in
fp32 and rounds the product: one. They agree only where the first rounding happens to do no harm. A model that was
trained with one of them is another model with the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import study
import torch
from torch import Tensor

import minillm
from minillm.ops.reference import rms_norm
from minillm.report import observe, picture

PROMPT = "Once upon a time there was a clever owl named Pip. One day Pip found a red ball in the garden."


def differing(x: Tensor, weight: Tensor, eps: float) -> float:
    """The share of bf16 outputs of x `[N, E]` that the place of the rounding changes."""
    first, second = (rms_norm(x, weight, eps, cast=cast) for cast in ("before_weight", "after_weight"))
    return (first != second).float().mean().item()


def errors(x: Tensor, weight: Tensor, eps: float) -> dict[str, float]:
    """Root mean square of the relative error of each against fp32."""
    exact = rms_norm(x.float(), weight.float(), eps)
    found = {cast: rms_norm(x, weight, eps, cast=cast).float() for cast in ("before_weight", "after_weight")}
    return {cast: ((y - exact) / exact)[exact != 0].square().mean().sqrt().item() for cast, y in found.items()}


def draw(path: Path, steps: Tensor, shares: list[float], layers: dict[str, float]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [100 * share for share in shares], color=picture.COLOURS[0])
    left.set(xlabel="every weight is this number", ylabel="outputs that differ, %", title="One weight for all")
    left.set_xscale("log", base=2)
    left.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    right.barh(list(layers), [100 * share for share in layers.values()], color=picture.COLOURS[1])
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=8)
    right.set(xlabel="outputs that differ, %", title="The norms of the demo model")
    picture.save(figure, path)


@torch.inference_mode()
def measure(_: argparse.Namespace) -> study.Draw:
    llm = minillm.load(dtype="bfloat16", kernels="reference")
    torch.manual_seed(0)
    x = torch.randn(2000, 128).bfloat16()
    steps = torch.logspace(-1, 2, 97, base=2)
    shares = [differing(x, torch.full((128,), step).bfloat16(), 1e-5) for step in steps.tolist()]
    random = differing(x, (1 + 0.3 * torch.randn(128)).bfloat16(), 1e-5)
    powers = differing(x, torch.full((128,), 2.0).bfloat16(), 1e-5)
    print(f"random weights around 1: {100 * random:.1f} % differ; all weights 1 or 2: {100 * powers:.1f} %")

    names = [f"layers.{i}.{norm}" for i in range(len(llm.spec.layers)) for norm in ("attention_norm", "ffn_norm")]
    tokens = torch.tensor([llm.tokenizer.encode(PROMPT)])
    with observe.ops(llm.model, "rms_norm", "add_rms_norm") as calls:
        llm.model(tokens)
    layers, found = {}, []
    for call in calls:
        if call.module in names:
            inner = call.op == "add_rms_norm"
            given = call.given[0] + call.given[1] if inner else call.given[0]
            weight, eps = call.given[1 + inner], call.given[2 + inner]
            layers[call.module] = differing(given, weight, eps)
            found.append(errors(given, weight, eps))
    mean = sum(layers.values()) / len(layers)
    print(f"the {len(layers)} norms of the demo's layers on {tokens.shape[1]} tokens: {100 * mean:.1f} % differ")
    for cast in ("before_weight", "after_weight"):
        error = sum(each[cast] for each in found) / len(found)
        print(f"{cast:>13}: relative error {error:.5f} against fp32")
    return lambda path: draw(path, steps, shares, layers)


if __name__ == "__main__":
    study.main(study.parser(__doc__, "the shares"), measure)
