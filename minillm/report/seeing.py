"""What a tower is, and what a picture costs in it, in numbers: for `plan` and `explain`.

Shapes: N patches, E the tower's hidden size, n tokens of the decoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from minillm.families.media import is_part, media
from minillm.media import pictures, settings, sources, tower
from minillm.model.filling import on_meta
from minillm.model.tower import turning
from minillm.model.tower.tower import Tower
from minillm.spec import GQA
from minillm.spec.media import Encoder, Media, Patches
from minillm.weights.rules import plan

SIZE = re.compile(r"([0-9]{1,7})x([0-9]{1,7})")
IMAGE = "what a picture costs: a file, or a size as 1024x768"


def described(values: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any] | None:
    """What a config.json says of its tower: the kind that it reads, its parameters, and their bytes in memory; None
    where there is none that is supported."""
    found = tower.outlined(values, dtype)
    if found is None:
        return None
    made, network = found
    return {"kind": made.kind, "parameters": parameters(network), "bytes": tower.nbytes(values, dtype)}


def stored(values: Mapping[str, Any], names: Collection[str] | None, width: int) -> tuple[set[str], int]:
    """The tensors of a tower among the names of a checkpoint, and what they take with values of `width` bytes: those
    that fill all of it, or of a config alone (None) all that it has; nothing where they are others."""
    if (found := tower.supported(values)) is None:
        return set(), 0
    made, rules, _ = found
    places = on_meta(lambda: Tower(made.encoder), torch.bfloat16).destinations()
    if names is None:
        keyless = not any(target.endswith(tower.KEY_BIAS) for target in rules.values())
        sizes = (math.prod(to.shape) for name, to in places.items() if not (keyless and name.endswith(tower.KEY_BIAS)))
        return set(), width * sum(sizes)
    planned = plan([each for each in names if is_part(each)], rules, places)
    unfilled = [each for each in planned.unfilled if not each.endswith(tower.KEY_BIAS)]  # which some files do without
    if planned.unclaimed or planned.twice_filled or unfilled:
        return set(), 0
    return {*planned.assignments}, width * sum(math.prod(to.shape) for to in planned.assignments.values())


def parameters(network: torch.nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def size_of(given: str) -> tuple[int, int]:
    """The width and height of a picture, which is a file or a size. Raises ValueError for what is neither."""
    if found := SIZE.fullmatch(given):
        width, height = int(found[1]), int(found[2])
        pictures.within((width, height), f"--image {given}")
        return width, height
    return pictures.opened(sources.source("image", given, given)).size


def picture(place: Path, values: Mapping[str, Any], given: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a picture, a file or a size, becomes: sizes as width and height, bytes of what is in memory for it, and
    operations; of a layer's attention the bytes of queries, keys, values and outputs, and those of all scores in fp32,
    which are never there together. Raises ValueError for a model that sees none, and for a folder that lacks how."""
    found = media(values)
    if found is None or found[0].kind != "image":
        raise ValueError(f"--image {given}: this model ({values.get('model_type')}) sees no pictures; leave it out")
    made = found[0]
    width, height = size_of(given)
    folder = place if place.is_dir() else place.parent
    chosen = settings.read(folder, made)
    assert isinstance(chosen, settings.Settings)
    high, wide = pictures.size_of(height, width, chosen.within(None, pictures.DEFAULT_MOST))
    return {"picture": given, "size": [width, height], "brought_to": [wide, high], **_cost(made, high, wide, dtype)}


def _cost(made: Media, high: int, wide: int, dtype: torch.dtype) -> dict[str, Any]:
    embed, encoder = made.encoder.embed, made.encoder
    assert isinstance(embed, Patches)
    rows, columns = high // embed.side, wide // embed.side
    count, tokens = rows * columns, [rows // embed.merge, columns // embed.merge]
    attention = encoder.layers[0].attention
    assert isinstance(attention, GQA)
    inner, pairs = attention.num_heads * attention.head_dim, _pairs(encoder, rows, columns)
    return {
        "patches": [columns, rows],
        "tokens": tokens[0] * tokens[1],
        "breaks": (tokens[0] - 1) if made.placeholder.between else 0,
        "pixel_bytes": 3 * high * wide * 4,
        "patch_bytes": count * embed.values * 4,
        "attention_bytes": 4 * count * inner * dtype.itemsize,
        "scores_bytes": attention.num_heads * max(pairs) * 4,
        "flops": _products(encoder, count, tokens[0] * tokens[1]) + 4 * inner * sum(pairs),
    }


def _pairs(encoder: Encoder, rows: int, columns: int) -> list[int]:
    """Of each layer the pairs of a query and a key that it sees."""
    count, embed = rows * columns, encoder.embed
    whole = apart = count**2
    if encoder.window is not None and isinstance(embed, Patches):
        places = turning.places(rows, columns, embed.merge)
        apart = sum(many * size**2 for many, size in turning.windows(places, encoder.window * embed.merge)[1])
    return [whole if encoder.window is None or i in encoder.whole else apart for i in range(len(encoder.layers))]


def _products(encoder: Encoder, count: int, tokens: int) -> int:
    """Operations of all products, two for each value of a matrix and each row that goes through."""
    network = on_meta(lambda: Tower(encoder), torch.bfloat16)
    total = 0
    for name, each in network.named_parameters():
        if each.dim() == 2 and name != "table":
            behind = name.startswith(("projector.", "taps."))
            total += 2 * each.numel() * (tokens if behind else count)
    return total
