"""How long a tower takes for a picture, against transformers:

    python -m minillm.bench tower --weights PATH [--image FILE | WxH] [--layers N] [--dtype float32] [--rounds 5]

Both have the same random weights, in the shapes of the checkpoint's config, and as many threads. They take turns, one
picture each, after one that warms up; transformers attends by `sdpa`. Figures are medians of milliseconds for a
picture, from its patches to tokens. `--layers` cuts both towers to their first layers, as all are alike. The last line
of stdout is JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from minillm import cli, hub, ops
from minillm.config import read
from minillm.families.media import media
from minillm.media import pictures, settings
from minillm.model.tower.tower import Tower
from minillm.ops.device import DTYPES, resolve_device
from minillm.report import reference, seeing
from minillm.report.measure import synchronize
from minillm.spec.media import Media, Patches
from minillm.weights.rules import Rules, plan, rows

NEAR = 1e-3  # of the largest value: what they may differ by in fp32, else something else is measured


def filled(made: Media, rules: Rules, theirs: Any, dtype: torch.dtype, device: torch.device, kernels: Any) -> Tower:
    """A tower with the weights of transformers' own, by the family's rules. Raises ValueError for one that they do not
    fill."""
    chosen = replace(ops.select(kernels, device, dtype), attention=ops.REFERENCE.attention)
    tower = Tower(made.encoder, chosen).to(device, dtype).requires_grad_(False).eval()
    given = theirs.state_dict()
    planned = plan([*given], rules, tower.destinations())
    if planned.unfilled:
        raise ValueError(f"transformers' tower has nothing for {planned.unfilled[0]}; the two cannot be compared")
    parameters = dict(tower.named_parameters())
    for name, to in planned.assignments.items():
        into = rows(parameters[to.parameter], to)
        if to.layout is None:
            into.copy_(given[name])
        else:
            to.layout.copy(given[name], into)
    return tower


def inputs(made: Media, high: int, wide: int) -> tuple[Any, dict[str, Any]]:
    """Random pixels of a picture of this size: patches and grid for ours, and what transformers takes."""
    embed = made.encoder.embed
    assert isinstance(embed, Patches)
    pixels = torch.randn(3, high, wide, generator=torch.Generator().manual_seed(0))
    values, grid = pictures.patches(pixels, embed.side, embed.merge, embed.frames)
    return (values, grid), reference.inputs(made, pixels, values, grid)


@torch.inference_mode()
def measured(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, device: torch.device) -> dict[str, Any]:
    """Medians in milliseconds, and the ratio. Each goes first in every other round."""
    times: dict[str, list[float]] = {"minillm": [], "transformers": []}
    turns = [("minillm", ours), ("transformers", theirs)]
    for number in tqdm(range(rounds + 1), unit="round", leave=False, disable=None):
        for name, run in turns if number % 2 else turns[::-1]:
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - started))
    found = {name: statistics.median(each[1:]) for name, each in times.items()}
    return {**{f"{name}_ms": each for name, each in found.items()}, "ratio": found["transformers"] / found["minillm"]}


def bench(arguments: Any) -> dict[str, Any]:
    """All that is printed. Raises ValueError for a checkpoint that sees no pictures."""
    folder, dtype = hub.resolve(arguments.weights, tensors=False), DTYPES[arguments.dtype]
    values, device = read(folder), resolve_device(arguments.device)
    values = reference.shortened(values, arguments.layers)
    if (found := media(values)) is None or found[0].kind != "image":
        raise ValueError(f"{folder}: this checkpoint sees no pictures, so there is nothing to measure")
    made, rules, _ = found
    width, height = seeing.size_of(arguments.image)
    chosen = settings.read(folder, made) if arguments.as_seen else None
    high, wide = _sides(made, height, width, chosen)
    theirs = reference.tower(values, dtype).to(device)
    tower = filled(made, rules, theirs, dtype, device, arguments.kernels)
    (patches, grid), given = inputs(made, high, wide)
    patches = patches.to(device)

    def both() -> tuple[Callable[[], Any], Callable[[], Any]]:
        return lambda: tower.of_picture(patches, grid), lambda: reference.embeddings(theirs, given)

    ours, other = both()
    with torch.inference_mode():
        mine, wanted = ours().embeddings, other()
    apart = float((mine - wanted.view_as(mine)).abs().max() / wanted.abs().max())
    if dtype == torch.float32 and not apart <= NEAR:  # NaN differs
        raise ValueError(
            f"the two towers differ by {apart:.2g} of the largest value; see python -m minillm.diff --image"
        )
    size = {"picture": [wide, high], "patches": grid[0] * grid[1], "tokens": len(mine)}
    said = {"weights": hub.name_of(folder), "dtype": arguments.dtype, "layers": len(made.encoder.layers), **size}
    said |= {"threads": torch.get_num_threads(), "difference": apart}
    return {**said, **measured(ours, other, arguments.rounds, device)}


def _sides(made: Media, height: int, width: int, chosen: Any) -> tuple[int, int]:
    """What a picture is brought to, by the checkpoint's files or, without them, to the nearest blocks."""
    embed = made.encoder.embed
    assert isinstance(embed, Patches)
    if chosen is not None:
        return pictures.size_of(height, width, chosen.within(None, pictures.DEFAULT_MOST))
    if made.sizing == "fixed" and made.encoder.table is not None:
        return (made.encoder.table.side * embed.side,) * 2
    return pictures.by_area(height, width, embed.side * embed.merge, 1, pictures.DEFAULT_MOST)


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("bench tower", "Measure a tower on a picture, against transformers, both with random weights.")
    parser.add_argument("--weights", metavar="PATH", required=True, help=cli.WEIGHTS)
    parser.add_argument("--image", metavar="FILE | WxH", default="640x480", help="its size counts (default: 640x480)")
    parser.add_argument("--as-seen", action="store_true", help="in the size that the processor files bring it to")
    parser.add_argument("--layers", metavar="N", type=int, help="the first layers of the tower alone")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--kernels", default="auto", choices=("auto", "reference", "triton"))
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or (arguments.layers is not None and arguments.layers < 1):
        raise ValueError("--rounds and --layers must be at least 1")
    found = bench(arguments)
    wide, high = found["picture"]
    print(f"{found['weights']}: {found['layers']} layers of the tower, {found['dtype']}, {found['threads']} threads")
    print(f"{wide} x {high} pixels are {found['patches']:,} patches, {found['tokens']:,} tokens")
    print(f"minillm {found['minillm_ms']:,.0f} ms, transformers {found['transformers_ms']:,.0f} ms a picture: "
          f"{found['ratio']:.2f} x transformers\n\n{json.dumps(found)}")  # fmt: skip
    return 0
