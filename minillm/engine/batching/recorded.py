"""Passes of single tokens recorded once per shape and repeated, as `graphs.py` says; for requests that come and go.

What changes from step to step lies in memory: tokens, positions, tables of blocks. What does not is the shape: how many
sequences there are, how long their tables, what rotary frequencies go by. A shape is recorded once it has lasted for
some passes, as a recording costs several of them, and the last recordings are kept, for shapes come back. On a CPU only
passes of few rows are: products of many write matrices out, and a tape would keep all of those.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from minillm.engine import graphs
from minillm.engine.batching.passes import Single, hidden
from minillm.model.decoder import Decoder
from minillm.model.pools import Pools
from minillm.ops.cpu import usable
from minillm.ops.cpu.matrices import FEW_ROWS

PATIENCE = 4  # passes of a shape before it is recorded
MOST = 8  # recordings that are kept: each holds the activations of a pass


@dataclass
class Recorded:
    """Logits `[n, V]` behind single tokens; those of a recording are overwritten by the next call."""

    model: Decoder
    pools: Pools

    def __post_init__(self) -> None:
        self.record = graphs.recorder(self.model)
        self.watched = graphs.Watched(self.model)
        self.last: Any = None
        self.seen = 0  # passes in a row of the last shape
        self.made: dict[Any, tuple[graphs.Recording, Single, Tensor, list[Tensor]]] = {}

    def __call__(self, single: Single) -> Tensor:
        plain = self.record is None or self.watched
        if plain or (self.record is graphs.on_tape and not (len(single.tokens) <= FEW_ROWS and usable.to_record())):
            return self._run(single)
        shapes = tuple((group, each.shape) for group, each in single.tables.items())
        turning = self.model.turned(single.lengths or (0,))
        choice = self.model.choice
        adapters = choice.names, tuple(name for name, _ in choice.rows)
        # Of the frequencies that are kept nothing else has the number.
        key = (len(single.tokens), shapes, adapters, single.turning is None, *map(id, turning))
        self.seen, self.last = self.seen + 1 if key == self.last else 1, key
        if key not in self.made:
            if self.seen <= PATIENCE or not self._recorded(key, single, turning):
                return self._run(single)
            if self.record is graphs.on_tape:
                return self.made[key][2]  # a tape is of a pass that ran
        recording, kept, logits_NV, _ = self.made[key] = self.made.pop(key)  # the latest is the last
        for of, to in ((single.tokens, kept.tokens), (single.positions, kept.positions)):
            to.copy_(of)
        if single.turning is not None and kept.turning is not None:
            kept.turning.copy_(single.turning)
        for group, table in single.tables.items():
            kept.tables[group].copy_(table)
        recording.replay()
        return logits_NV

    def _run(self, single: Single) -> Tensor:
        return self.model.logits(hidden(self.model, single, self.pools))[0]

    def _recorded(self, key: Any, single: Single, turning: list[Tensor]) -> bool:
        """Record a pass, or say in one line why not; it writes what it will write again when it is repeated."""
        assert self.record is not None
        tables = {group: table.clone() for group, table in single.tables.items()}
        turned = None if single.turning is None else single.turning.clone()
        kept = Single(single.tokens.clone(), single.positions.clone(), tables, single.lengths, turned)
        try:
            recording, logits_NV = self.record(partial(self._run, kept), single.tokens.device)
        except RuntimeError as reason:
            self.record = None
            why = str(reason).partition("\n")[0]
            print(f"minillm: decode steps go call by call, none is recorded: {why}", file=sys.stderr)
            return False
        if len(self.made) == MOST:
            del self.made[next(iter(self.made))]
        self.made[key] = recording, kept, logits_NV, turning
        return True
