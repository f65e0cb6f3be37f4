"""A model over the memory of many requests: all that an engine has it do. Where the model lies in several ranks, each
call is told to the others first, whose runners `obey`: what is decided, is decided in one place. Groups are told by
their `repr`, as JSON does not tell a window from a `Chunk`."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.engine.batching.passes import Mixed, Part, Single, hidden_of
from minillm.engine.batching.recorded import Recorded
from minillm.engine.batching.room import SIZE
from minillm.model.decoder import Decoder
from minillm.model.pools import Group, Pools, StatePool

NUMBERS = itertools.count()


class Runner:
    """`blocks` of each group, and passes over them."""

    def __init__(self, model: Decoder, blocks: Mapping[Group, int]):
        self.model, self.ranks, self.blocks, self.number = model, model.ops.ranks, blocks, next(NUMBERS)
        self.groups = {repr(group): group for group in blocks}
        self.ranks.tell("open", number=self.number, blocks=_told(blocks))
        weakref.finalize(self, self.ranks.forget, self.number)
        self.pools = Pools(model.spec, blocks, SIZE, model.dtype, model.embedding.weight.device)
        self.recorded = Recorded(model, self.pools)

    def single(self, single: Single) -> Tensor:
        """The logits `[n, V]` behind one token of each sequence; those of a recording are overwritten by the next."""
        with self.ranks.undisturbed():
            self._tell("single", _tensors(single), **_of_single(single))
            return self.recorded(single)

    def mixed(self, mixed: Mixed) -> Tensor:
        """The hidden states `[1, N, E]` behind tokens of many sequences."""
        parts = [[part.first, part.ids, _told(part.tables)] for part in mixed.parts]
        with self.ranks.undisturbed():
            given = {"parts": parts, "whole": mixed.lengths, **_of_single(mixed.single)}
            self._tell("mixed", _tensors(mixed.single), **given)
            return hidden_of(self.model, mixed, self.pools)

    def logits(self, x_BTE: Tensor) -> Tensor:
        """The logits `[B, T, V]` of hidden states."""
        with self.ranks.undisturbed():
            self._tell("logits", [x_BTE])
            return self.model.logits(x_BTE)

    def copy(self, group: Group, source: int, target: int) -> None:
        """One block of a group into another, in all its layers."""
        self._tell("copy", group=repr(group), source=source, target=target)
        self.pools.copy(group, source, target)

    @torch.inference_mode()
    def clear(self, block: int) -> None:
        """What a state is before the first position."""
        self._tell("clear", block=block)
        for layer in self.pools.of("state"):
            assert isinstance(layer, StatePool)
            layer.clear(block)

    def _tell(self, what: str, tensors: Sequence[Tensor] = (), **given: Any) -> None:
        if self.ranks.count > 1:
            self.ranks.tell(what, tensors, number=self.number, adapters=self.model.choice.names, **given)

    def obey(self, what: str, tensors: Sequence[Tensor], given: dict[str, Any]) -> None:
        """Do what another rank's runner does."""
        self.model.choice.each(given.pop("adapters"), self.model.embedding.weight.device)
        if what in ("single", "mixed"):
            tokens, positions, *tables = tensors
            by_group = self._by_group(zip(given["groups"], tables, strict=True))
            single = Single(tokens, positions, by_group, tuple(given["lengths"]))
            if what == "single":
                self.recorded(single)
                return
            parts = tuple(Part(ids, first, self._by_group(tables)) for first, ids, tables in given["parts"])
            hidden_of(self.model, Mixed(single, parts, tuple(given["whole"])), self.pools)
        elif what == "logits":
            self.model.logits(*tensors)
        elif what == "copy":
            self.copy(self.groups[given["group"]], given["source"], given["target"])
        else:
            assert what == "clear", what
            self.clear(**given)

    def _by_group(self, told: Iterable[Any]) -> dict[Group, Any]:
        return {self.groups[name]: each for name, each in told}


def _told(by_group: Mapping[Group, Any]) -> list[tuple[str, Any]]:
    return [(repr(group), each) for group, each in by_group.items()]


def _tensors(single: Single) -> list[Tensor]:
    return [single.tokens, single.positions, *single.tables.values()]


def _of_single(single: Single) -> dict[str, Any]:
    return {"groups": [*map(repr, single.tables)], "lengths": single.lengths}
