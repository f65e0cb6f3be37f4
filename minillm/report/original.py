"""A checkpoint that is to be written anew: its tensors, and the decoder whose parameters they fill."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from minillm import families
from minillm.families.media import is_part
from minillm.guard.screen import note
from minillm.loading import fits, integers, opened
from minillm.model.decoder import Decoder, skeleton
from minillm.ops.device import stored_dtype
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.ints import Int4, Int8
from minillm.weights.rules import Destination, Plan
from minillm.weights.save import published

TABLE = "embedding.weight"


@dataclass(frozen=True)
class Original:
    """`values` are those of config.json, `plain` is the decoder in fp32 without memory, `dtype` what the checkpoint is
    said to be in, `scheme` the integers that `minillm.quantize` has made of it, if it has, and `towers` the tensors
    that see or hear, which no parameter of the decoder is for."""

    folder: Path
    values: dict[str, Any]
    checkpoint: Checkpoint
    planned: Plan
    plain: Decoder
    dtype: torch.dtype
    scheme: Int8 | Int4 | None = None
    towers: Mapping[str, Destination] = field(default_factory=dict)

    @property
    def kept(self) -> Plan:
        """All that a folder is written of."""
        return replace(self.planned, assignments={**self.planned.assignments, **self.towers})


def original(folder: Path, values: Mapping[str, Any]) -> Original:
    """The checkpoint in a folder whose config.json has these values. Raises ValueError for one that cannot be read."""
    scheme = integers(folder, dict(values))
    values, checkpoint = opened(folder, dict(values))
    spec, rules, read = families.resolve(values)
    plain = skeleton(spec, torch.float32)
    planned = checkpoint.plan(rules, plain.destinations())
    for each in fits(planned, checkpoint, values):
        note(each)
    dtype = stored_dtype("auto", read.dtype, checkpoint.dtype)
    towers = {name: Destination(name, 0, checkpoint.info[name].shape) for name in planned.dropped if is_part(name)}
    return Original(folder, values, checkpoint, planned, plain, dtype, scheme, towers)


def untied(given: Original) -> Original:
    """The same with a head of its own, which has the values of the embedding."""
    values, checkpoint = families.untied(given.values), copy.copy(given.checkpoint)
    checkpoint.info, checkpoint.stored = dict(checkpoint.info), dict(checkpoint.stored)
    spec, rules, _ = families.resolve(values)
    plain = skeleton(spec, torch.float32)
    planned = checkpoint.plan(rules, plain.destinations())
    if families.HEAD in planned.unfilled:
        head, table = (
            next(name for name, to in names.items() if to.parameter == parameter)
            for names, parameter in (
                (published(rules, plain.destinations()), families.HEAD),
                (planned.assignments, TABLE),
            )
        )
        checkpoint.info[head], checkpoint.stored[head] = checkpoint.info[table], checkpoint.stored[table]
        planned = checkpoint.plan(rules, plain.destinations())
    return replace(given, values=values, checkpoint=checkpoint, planned=planned, plain=plain)
