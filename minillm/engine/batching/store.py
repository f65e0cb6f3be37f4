"""The memory of all requests: which blocks each has, what prefixes are there already, what can be given up.

What the kinds of layers need (`model/pools.py`): those without a window a block for every `size` positions; those with
one only the blocks that the window still reaches, the others are given up as it moves on; recurrent layers one block
for the state, and a copy of it at the end of a block of tokens, for a state cannot go back to an earlier position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from minillm.engine.batching.blocks import Blocks
from minillm.engine.batching.names import extended
from minillm.engine.batching.request import GONE, Request
from minillm.engine.batching.room import SIZE, reach
from minillm.model.decoder import Decoder
from minillm.model.pools import Group
from minillm.spec import DynamicScaling, LongRopeScaling


class Memory(Protocol):
    """What there is in blocks, so many of each group (`runner.py`)."""

    blocks: Mapping[Group, int]

    def copy(self, group: Group, source: int, target: int) -> None:
        """One block of a group into another."""

    def clear(self, block: int) -> None:
        """What a state is before the first position."""


class Store:
    """Blocks for requests. What a method takes and gives back is counted; nothing is ever lost."""

    def __init__(self, model: Decoder, memory: Memory, piece: int, share: bool = True):
        self.share, self.piece, self.size, self.memory = share, piece, SIZE, memory
        self.groups: dict[Group, Blocks] = {group: Blocks(count) for group, count in memory.blocks.items()}
        self.windows = {group: group for group in memory.blocks if isinstance(group, int)}
        self.choice = model.choice
        scalings = [each.scaling for each in model.spec.ropes]
        self.dynamic = {each.original_positions for each in scalings if isinstance(each, DynamicScaling)}
        self.long = {each.original_positions for each in scalings if isinstance(each, LongRopeScaling)}

    def most(self) -> int:
        """How many positions the longest request can have."""
        return self.groups[None].count * self.size if None in self.groups else 2**62

    def enough(self, request: Request, upto: int) -> bool:
        """Whether there are blocks for all positions before `upto`, beside those that it has; with a window for as many
        as are needed at a time."""
        for group, blocks in self.groups.items():
            needed = 1 if group == "state" else -(-upto // self.size)
            if group in self.windows:
                needed = min(needed, reach(self.windows[group], self.piece))
            if needed - sum(block != GONE for block in request.tables.get(group, ())) > blocks.free:
                return False
        return True

    def grow(self, request: Request, upto: int) -> bool:
        """Give blocks for all positions before `upto`; False, and nothing, where they lack."""
        wanted: dict[Group, int] = {}
        for group, blocks in self.groups.items():
            table = request.tables.setdefault(group, [])
            wanted[group] = max((1 if group == "state" else -(-upto // self.size)) - len(table), 0)
            if wanted[group] > blocks.free:
                return False
        for group, count in wanted.items():
            request.tables[group] += [self.groups[group].take() for _ in range(count)]
            if group == "state" and count:
                self.memory.clear(request.tables[group][0])
        return True

    def release(self, request: Request) -> None:
        """Take all blocks back; the last first, so that what begins a text is kept longest."""
        for group, table in request.tables.items():
            for block in reversed(table):
                if block != GONE:
                    self.groups[group].drop(block)
        self.forget(request)
        request.tables, request.computed, request.named = {}, 0, 0

    def advance(self, request: Request, count: int) -> None:
        """So many more positions are computed: name the blocks that are full, give up what no window reaches."""
        request.computed += count
        if self.share and self._lasting(request):
            self._name(request)
        for group, window in self.windows.items():
            table = request.tables[group]
            for index in range(min(max(request.computed - window + 1, 0) // self.size, len(table)) - 1, -1, -1):
                if table[index] == GONE:
                    break
                self.groups[group].drop(table[index])
                table[index] = GONE

    def recall(self, request: Request) -> None:
        """Let a request that has nothing use what is there of its prefix."""
        names = self._names(request)
        if not (self.share and self._lasting(request)) or not (count := self._longest(names)):
            return
        for group, blocks in self.groups.items():
            if group == "state":
                source = blocks.find(names[count - 1])
                assert source is not None
                blocks.share(source)  # while another is taken
                if not blocks.free:
                    blocks.drop(source)
                    return self.release(request)
                request.tables[group] = [blocks.take()]
                self.memory.copy(group, source, request.tables[group][0])
                blocks.drop(source)
                continue
            first = self._reached(group, count)
            found = [blocks.find(name) for name in names[first:count]]
            request.tables[group] = [GONE] * first + [blocks.share(block) for block in found if block is not None]
        request.named, request.computed, request.cached = count, count * self.size, count * self.size

    def coming(self, request: Request, running: Sequence[Request]) -> bool:
        """Whether the block behind those that are there for it is being computed for another one now."""
        reading = [each for each in running if each.reading]
        if not (self.share and reading and self._lasting(request)):
            return False
        names = self._names(request)
        there = self._longest(names)
        return there < len(names) and any(names[there] in each.names[each.named :] for each in reading)

    def fork(self, request: Request, other: Request) -> bool:
        """Let another with the same prompt, which has nothing, have what is computed of it: full blocks are shared, the
        last one and states are copied, as both will write there. False, and nothing, where there are no blocks."""
        full = request.computed // self.size
        shared = {group: 0 if group == "state" else full for group in request.tables}
        if any(len(table) > shared[group] + self.groups[group].free for group, table in request.tables.items()):
            return False
        for group, table in request.tables.items():
            blocks, count = self.groups[group], shared[group]
            other.tables[group] = [block if block == GONE else blocks.share(block) for block in table[:count]]
            for source in table[count:]:
                other.tables[group].append(blocks.take())
                self.memory.copy(group, source, other.tables[group][-1])
        other.computed, other.named, other.cached = request.computed, request.named, request.computed
        other.names, other.salted = [*request.names], request.salted
        return True

    def save(self, request: Request) -> bool:
        """Keep a copy of its state, which guesses may spoil; False where there is no block for it."""
        if (blocks := self.groups.get("state")) is None:
            return True
        if not blocks.free:
            return False
        request.saved = blocks.take()
        self.memory.copy("state", request.tables["state"][0], request.saved)
        return True

    def restore(self, request: Request) -> None:
        """Go back to the state that was saved."""
        if request.saved is not None:
            self.groups["state"].drop(request.tables["state"][0])
            request.tables["state"][0], request.saved = request.saved, None

    def forget(self, request: Request) -> None:
        """Go on with the state as it is."""
        if request.saved is not None:
            self.groups["state"].drop(request.saved)
            request.saved = None

    def alike(self, request: Request) -> int:
        """How many more tokens leave its keys turned as they are."""
        return min((each - request.length for each in self.long if request.length <= each), default=2**62)

    def ahead(self, request: Request) -> int:
        """How many of its tokens may be read in one piece: where there is a state to keep, up to the last end of a
        block that another request with this beginning could go on from."""
        boundary = (request.length - 1) // self.size * self.size
        keeps = self.share and "state" in self.groups and request.computed < boundary
        return (boundary if keeps else request.length) - request.computed

    def salt(self, request: Request) -> bytes:
        """What its keys depend on beside the tokens: LongRoPE turns all of them by the length of the whole."""
        of_adapter = self.choice.identity(request.row.asked.adapter)
        return bytes(request.length > each for each in sorted(self.long)) + of_adapter + request.salt

    def _names(self, request: Request) -> list[bytes]:
        """Of the full blocks that it need not compute where they are there."""
        if request.salted != (salt := self.salt(request)):
            request.salted, request.names = salt, []
        if not self.share:
            return []
        ids, inserted = request.ids(0, request.length), request.row.inserted
        return extended(request.names, ids, self.size, salt, inserted)[: request.known // self.size]

    def _lasting(self, request: Request) -> bool:
        """Whether its keys are the same in a longer text: dynamic scaling turns each by the length at that time."""
        return all(request.length <= each for each in self.dynamic)

    def _longest(self, names: list[bytes]) -> int:
        """How many of the first blocks are there for all groups."""
        count = len(names)
        if (whole := self.groups.get(None)) is not None:
            count = next((i for i, name in enumerate(names) if whole.find(name) is None), count)
        others = [(group, blocks) for group, blocks in self.groups.items() if group is not None]
        while count:
            lacks = [
                i
                for group, blocks in others
                for i in range(self._reached(group, count), count)
                if blocks.find(names[i]) is None
            ]
            if not lacks:
                return count
            count -= 1
        return 0

    def _reached(self, group: Group, count: int) -> int:
        """The first block that the position behind `count` blocks still needs."""
        if group == "state":
            return count - 1
        return max(count * self.size - self.windows[group] + 1, 0) // self.size if group in self.windows else 0

    def _name(self, request: Request) -> None:
        """Name the blocks that are full of known tokens."""
        assert request.salted is not None
        ids, inserted = request.ids(0, request.computed), request.row.inserted
        names = extended(request.names, ids, self.size, request.salted, inserted)
        full = min(request.computed, request.length) // self.size
        for group, blocks in self.groups.items():
            table = request.tables[group]
            if group == "state":
                if (
                    full
                    and request.computed == full * self.size
                    and blocks.find(names[full - 1]) is None
                    and blocks.free
                ):
                    self._keep_state(request, blocks, names[full - 1])
                continue
            for index in range(request.named, full):
                if table[index] != GONE:
                    blocks.name(table[index], names[index])
        request.named = full

    def _keep_state(self, request: Request, blocks: Blocks, name: bytes) -> None:
        if blocks.find(name) is not None or not blocks.free:
            return
        copy = blocks.take()
        self.memory.copy("state", request.tables["state"][0], copy)
        blocks.name(copy, name)
        blocks.drop(copy)
        if request.snapshot is not None:  # of new tokens the last state will do
            blocks.unname(*request.snapshot)
        request.snapshot = (copy, name) if request.computed > len(request.row.prompt) else None
