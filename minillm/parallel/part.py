"""Of a checkpoint and the model that it fills: what one of several processes has of both."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from minillm import config, families, hub
from minillm.guard import memory
from minillm.model.decoder import Decoder, skeleton
from minillm.parallel import cut, kept, split, stages
from minillm.parallel.share import Share
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.rules import Plan


def part(
    model: Decoder, checkpoint: Checkpoint, planned: Plan, ranks: Any, device: torch.device, layers: str | None
) -> tuple[Decoder, Checkpoint, Plan, Share]:
    """Some of the layers, as `layers` "20,12" says or by the memory of each stage, and of these a share of each.
    `model` is a skeleton. Raises ValueError where it cannot be split so."""
    spec, ops = model.spec, replace(model.ops, ranks=ranks)
    called: Callable[[str], str | None] = str
    own = dict[str, kept.Kept]()
    if ranks.staged:
        stage = ranks.rank // ranks.wide
        spans = stages.stated(layers, len(spec.layers)) if layers else _by_memory(model, ranks, device)
        called = functools.partial(stages.name, span=spans[stage], stage=stage)
        checkpoint, planned = cut.staged(checkpoint, planned, called, spec.hidden_size if stage else None)
        spec = stages.local(spec, spans, stage)
    if ranks.wide > 1:
        which = spec, ranks.wide, ranks.rank % ranks.wide
        own = kept.kept(*which)
        checkpoint, planned = cut.taken(checkpoint, planned, own)
        spec = split.local(*which)
    return skeleton(spec, model.dtype, ops), checkpoint, planned, Share(model.spec, called, own)


def _by_memory(model: Decoder, ranks: Any, device: torch.device) -> list[split.Span]:
    left = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.available()
    layers = [sum(each.nbytes for each in layer.parameters()) for layer in model.layers]
    ends = sum(each.nbytes for each in model.parameters()) - sum(layers)
    free = ranks.all_of(left or 1)
    free = [min(free[at : at + ranks.wide]) * ranks.wide for at in range(0, len(free), ranks.wide)]
    stages.check(model.spec, [])
    return stages.shares(layers, ends, free, lambda span: stages.lacks(model.spec, span) is None)


def check(a: argparse.Namespace) -> None:
    """Raise ValueError where a model cannot be split as `--ranks`, `--stages` and `--layers` say: by its config alone,
    before anything is started."""
    spec, _, _ = families.resolve(config.read(hub.resolve(a.weights, tensors=False, revision=a.revision)))
    if a.stages not in (None, 1) or a.layers:
        stages.check(spec, stages.stated(a.layers, len(spec.layers)) if a.layers else [])
        if not a.layers:
            free = [1] * a.stages
            stages.shares([1] * len(spec.layers), 0, free, lambda span: stages.lacks(spec, span) is None)
    split.check(spec, a.ranks or 1)
