"""What decoding keeps of the past: which positions lie in which slots of a ring, and how the bytes grow with the text.

    python examples/kv_cache.py [--plot kv-cache.png]

The ring is a real one: `minillm.model.cache` fed one position at a time. The bytes are those of caches laid out on the
meta device, which takes no memory, with the numbers of published models in bfloat16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import study
import torch
from torch import Tensor

from minillm.model.cache import Cache
from minillm.report import picture
from minillm.spec import GQA, MLA, Decoder, GatedMLP, Layer, Norm, Rope

WINDOW, STEPS = 5, 12
LENGTHS = tuple(1024 * 2**n for n in range(8))


def decoder(attention: tuple[GQA | MLA, ...]) -> Decoder:
    """A model with these attentions; a cache asks for nothing else."""
    layers = tuple(Layer(None, each, None, GatedMLP(1)) for each in attention)
    return Decoder(1, 1, layers, Norm(1e-6), tied=True, context=LENGTHS[-1])


def gqa(kv_heads: int, head_dim: int, window: int | None = None) -> GQA:
    return GQA(kv_heads, kv_heads, head_dim, Rope(head_dim, 1e4), window)


MODELS = {
    "Llama 2 7B: 32 kv heads": (gqa(32, 128),) * 32,
    "Llama 3.1 8B: 8 kv heads": (gqa(8, 128),) * 32,
    "Mistral 7B v0.1: and a window": (gqa(8, 128, 4096),) * 32,
    "Gemma 3 4B: a window in 5 of 6": tuple(gqa(4, 256, None if i % 6 == 5 else 1024) for i in range(34)),
    "DeepSeek-V3: a latent, 61 layers": (MLA(128, 1536, 512, 128, 128, Rope(64, 1e4), Norm(1e-6)),) * 61,
}


def ring() -> Tensor:
    """The position in each slot after each step, `[STEPS, WINDOW]`; -1 where a slot is empty yet."""
    cache = Cache(decoder((gqa(1, 1, WINDOW),)), batch=1, capacity=STEPS, dtype=torch.float32).layers[0]
    cache.k.fill_(-1)
    found = []
    for position in range(STEPS):
        k = torch.full((1, 1, 1, 1), float(position))
        cache.update(k, k, position)
        found.append(cache.k[0, 0, :, 0].int().clone())
    return torch.stack(found)


def size(attention: tuple[GQA | MLA, ...], length: int) -> int:
    """Bytes of a bf16 cache with room for so many positions of one text."""
    cache = Cache(decoder(attention), batch=1, capacity=length, dtype=torch.bfloat16, device="meta")
    return sum(each.nbytes for layer in cache.layers for each in vars(layer).values() if isinstance(each, Tensor))


def draw(path: Path, slots: Tensor) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    age = torch.arange(STEPS)[:, None] - slots
    left.imshow(torch.where(slots < 0, torch.nan, -age.float()), cmap=picture.SEQUENTIAL, aspect="auto")
    for step, row in enumerate(slots.tolist()):
        for slot, position in enumerate(row):
            if position >= 0:
                colour = "black" if step - position < 2 else "white"
                left.text(slot, step, str(position), ha="center", va="center", color=colour)
    left.set_yticks(range(STEPS))
    left.set(xlabel="slot", ylabel="after position", title=f"A ring of {WINDOW}: position p in slot p mod {WINDOW}")
    left.title.set_fontsize(10)
    for (name, attention), colour, marker in zip(MODELS.items(), picture.COLOURS, picture.MARKERS, strict=False):
        right.plot(LENGTHS, [size(attention, n) / 1e9 for n in LENGTHS], color=colour, marker=marker, label=name)
    right.set_xscale("log", base=2)
    right.set_xticks(LENGTHS, [f"{n // 1024}k" for n in LENGTHS])
    right.set(yscale="log", xlabel="positions", ylabel="GB in bfloat16", title="One text's cache")
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    picture.save(figure, path)


def measure(_: argparse.Namespace) -> study.Draw:
    slots = ring()
    print(f"a window of {WINDOW} after position {STEPS - 1}: its slots hold", *slots[-1].tolist())
    print(f"{'bytes of cache in bf16':36}{'at 4,096 positions':>20}{'at 131,072':>12}")
    for name, attention in MODELS.items():
        small, large = (size(attention, length) / 1e6 for length in (4096, 131072))
        print(f"{name:36}{small:17,.0f} MB{large:9,.0f} MB")
    return lambda path: draw(path, slots)


if __name__ == "__main__":
    study.main(study.parser(__doc__, "both"), measure)
