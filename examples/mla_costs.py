"""Latent attention in its two forms: what each reads and computes, and from how many new tokens on which is cheaper.

    python examples/mla_costs.py [--plot mla.png]

One layer of DeepSeek-V3. Expanded, keys and values of all heads are made from the cached latents, once however many
queries wait for them. Absorbed, each query moves into the latent space, where a key is longer but there is only one.
Then both forms of `minillm.model.mla` are run at a small size, and PyTorch's counter says the same of their products.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import study
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm.model.mla import LatentAttention
from minillm.ops import REFERENCE
from minillm.ops.visibility import Visibility
from minillm.report import picture
from minillm.spec import MLA, Norm, Rope

V3 = MLA(128, 1536, 512, 128, 128, Rope(64, 1e4), Norm(1e-6))
SMALL = MLA(8, None, 64, 16, 16, Rope(8, 1e4), Norm(1e-6))
KEYS = (512, 4096, 32768)


def expanded(spec: MLA, new: int, keys: int) -> int:
    """Floating-point operations, a multiplication and an addition each, of `new` queries over `keys` latents."""
    per_pair = spec.nope_dim + spec.rope.dim + spec.v_dim
    made = keys * spec.kv_rank * (spec.nope_dim + spec.v_dim)
    return 2 * spec.num_heads * (new * keys * per_pair + made)


def absorbed(spec: MLA, new: int, keys: int) -> int:
    per_pair = 2 * spec.kv_rank + spec.rope.dim
    moved = new * spec.kv_rank * (spec.nope_dim + spec.v_dim)
    return 2 * spec.num_heads * (new * keys * per_pair + moved)


def crossing(spec: MLA, keys: int) -> int:
    """The first number of new tokens at which the expanded form computes less."""
    return next(new for new in range(1, keys + 1) if expanded(spec, new, keys) < absorbed(spec, new, keys))


@torch.inference_mode()
def counted(spec: MLA, form: str, new: int, keys: int) -> int:
    """What PyTorch counts in the module itself, the projections left out."""
    module = LatentAttention(spec, 32, REFERENCE)
    q_nope = torch.randn(1, spec.num_heads, new, spec.nope_dim)
    q_rope = torch.randn(1, spec.num_heads, new, spec.rope.dim)
    latent = torch.randn(1, keys, spec.kv_rank + spec.rope.dim)
    visible = Visibility(start=keys - new, count=new, window=None, padding_B=None, device=latent.device)
    with FlopCounterMode(display=False) as counter:
        getattr(module, form)(q_nope, q_rope, latent, visible)
    return int(counter.get_total_flops())


def draw(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    kept = {
        "k and v of\n128 heads": V3.num_heads * (V3.nope_dim + V3.rope.dim + V3.v_dim),
        "k and v of\n8 heads (GQA)": 2 * 8 * 128,
        "latent and\nrotary key": V3.kv_rank + V3.rope.dim,
    }
    bars = left.bar(list(kept), list(kept.values()), color=picture.COLOURS[:3])
    left.bar_label(bars, [f"{value:,}" for value in kept.values()])
    left.set(yscale="log", ylabel="values", title="Kept of a token, in one layer", ylim=(100, 1e5))
    left.tick_params(axis="x", labelsize=8)
    for keys, colour in zip(KEYS, picture.COLOURS, strict=False):
        counts = [new for new in (2**n for n in range(16)) if new <= keys]
        for form, style in ((expanded, "-"), (absorbed, "--")):
            label = f"{form.__name__}, {keys:,} keys"
            right.plot(counts, [form(V3, n, keys) / n / 1e9 for n in counts], style, color=colour, label=label)
        cross = crossing(V3, keys)
        right.plot(cross, absorbed(V3, cross, keys) / cross / 1e9, "o", color="black")
    right.set(xscale="log", yscale="log", xlabel="new tokens at once (dot: where the forms cost the same)")
    right.set(ylabel="GFLOP for each new token", title="Arithmetic of the two forms")
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    picture.save(figure, path)


def measure(_: argparse.Namespace) -> study.Draw:
    for keys in KEYS:
        one = [form(V3, 1, keys) / 1e9 for form in (expanded, absorbed)]
        print(f"{keys:6,} keys, one new token: expanded {one[0]:8.2f} GFLOP, absorbed {one[1]:6.2f}; ", end="")
        print(f"expanded is cheaper from {crossing(V3, keys)} new tokens on")
    for new in (1, 7):
        formula = [form(SMALL, new, 50) for form in (expanded, absorbed)]
        module = [counted(SMALL, form, new, 50) for form in ("expanded", "absorbed")]
        print(f"small, {new} of 50: by formula {formula}, counted by PyTorch {module}")
    return draw


if __name__ == "__main__":
    study.main(study.parser(__doc__, "the costs"), measure)
