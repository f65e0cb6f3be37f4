"""One grouped-query attention by hand: the formula with einops, on a real sentence, and the module says the same.

    python examples/attention_by_hand.py [--weights PATH] [--prompt TEXT] [--layer N] [--plot attention.png]

Shapes: T tokens, E hidden size, H query heads over K kv heads, G = H / K of them each, D values of a head.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import study
import torch
from einops import einsum, rearrange
from torch import Tensor

import minillm
from minillm.guard.screen import printable
from minillm.model.rope import frequencies
from minillm.report import observe, picture
from minillm.spec import GQA


def turned(x: Tensor, rates: Tensor) -> Tensor:
    """`[T, heads, D]`, the pair (i, i + D/2) of token t as a complex number times e^(i t rate)."""
    half = x.shape[-1] // 2
    phases = torch.arange(len(x))[:, None] * rates
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(phases), phases)[:, None]
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def by_hand(x: Tensor, qkv: Tensor, out: Tensor, spec: GQA) -> tuple[Tensor, Tensor]:
    """x `[T, E]`, W_qkv `[(H + 2K) D, E]`, W_out `[E, H D]` -> y `[T, E]`, and the weights `[K, G, T, T]`."""
    heads = rearrange(einsum(x, qkv, "T E, rows E -> T rows"), "T (heads D) -> T heads D", D=spec.head_dim)
    q, k, v = heads.split((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads), dim=1)
    rates = frequencies(spec.rope, len(x))
    q, k = turned(q, rates), turned(k, rates)
    q = rearrange(q, "T (K G) D -> K G T D", K=spec.num_kv_heads)  # G query heads to each kv head: the whole of GQA
    scores = einsum(q, k, "K G T D, S K D -> K G T S") / spec.head_dim**0.5
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    y = rearrange(einsum(weights, v, "K G T S, S K D -> T K G D"), "T K G D -> T (K G D)")
    return einsum(y, out, "T HD, E HD -> T E"), weights


def draw(path: Path, weights: Tensor, tokens: list[str], layer: int) -> None:
    from matplotlib.figure import Figure

    kv_heads, group = weights.shape[:2]
    figure = Figure(figsize=(2.6 * group + 1.6, 2.6 * kv_heads + 0.9), layout="constrained")
    grid = figure.subplots(kv_heads, group, squeeze=False)
    for k in range(kv_heads):
        for g in range(group):
            axes = grid[k, g]
            image = axes.imshow(weights[k, g], cmap=picture.SEQUENTIAL, vmin=0, vmax=1)
            axes.set_title(f"query head {k * group + g} on kv head {k}", fontsize=10)
            axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
            axes.set_yticks(range(len(tokens)), tokens, fontsize=8)
    figure.colorbar(image, ax=grid, label="weight", shrink=0.6)
    figure.suptitle(f"Layer {layer}: which token (down) takes from which (across)", fontsize=11)
    picture.save(figure, path)


def measure(arguments: argparse.Namespace) -> study.Draw:
    llm = minillm.load(arguments.weights, dtype="float32", kernels="reference")
    if not 0 <= arguments.layer < len(llm.spec.layers):
        raise ValueError(f"--layer is {arguments.layer}, this model has layers 0 to {len(llm.spec.layers) - 1}")
    spec, name = llm.spec.layers[arguments.layer].attention, f"layers.{arguments.layer}.attention"
    if not isinstance(spec, GQA) or spec != GQA(spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.rope):
        raise ValueError("this layer has more than plain grouped-query attention; see `explain --equations`")
    if spec.rope.layout != "half" or spec.rope.dim != spec.head_dim:
        raise ValueError("this layer does not turn whole heads in halves; see `explain --equations`")
    ids = llm.tokenizer.encode(arguments.prompt)
    with torch.inference_mode(), observe.modules(llm.model, [name]) as calls:
        llm.model(torch.tensor([ids]))
    call, module = calls[name], llm.model.get_submodule(name)
    y, weights = by_hand(call.given[0][0], module.qkv.weight, module.out.weight, spec)
    print(f"{len(ids)} tokens, {spec.num_heads} query heads over {spec.num_kv_heads} kv heads of {spec.head_dim}")
    kept, all_heads = (2 * heads * spec.head_dim for heads in (spec.num_kv_heads, spec.num_heads))
    print(f"k and v of one token are {kept} values; with a kv head for each query head {all_heads}")
    difference = (y - call.result[0]).abs().max().item()
    print(f"by hand and by the module: outputs up to {y.abs().max().item():.3f}, largest difference {difference:.1e}")
    tokens = [printable(llm.tokenizer.decode([i])) or "(start)" for i in ids]
    return lambda path: draw(path, weights, tokens, arguments.layer)


if __name__ == "__main__":
    parser = study.parser(__doc__, "the weights")
    parser.add_argument("--weights", metavar="PATH", help="checkpoint folder (default: the built-in demo)")
    parser.add_argument("--prompt", default="Once upon a time there was a little owl named Pip")
    parser.add_argument("--layer", type=int, default=1)
    study.main(parser, measure)
