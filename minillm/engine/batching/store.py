"""The memory of all requests: which blocks each has, what prefixes are there already, what can be given up.

What the kinds of layers need (`model/pools.py`): those without a window a block for every `size` positions; those with
one only the blocks that the window still reaches, the others are given up as it moves on; recurrent layers one block
for the state, and a copy of it at the end of a block of tokens, for a state cannot go back to an earlier position.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from minillm.engine.batching.blocks import Blocks
from minillm.engine.batching.names import extended
from minillm.engine.batching.request import GONE, Request
from minillm.guard import memory
from minillm.model.decoder import Decoder
from minillm.model.pools import Group, Pools, StatePool, bytes_of
from minillm.spec import DynamicScaling, LongRopeScaling

SHARE = 0.5  # of the memory that is left, for a cache of which nobody says how large it may be
SIZE = 16  # positions of a block: at most 15 of a shared prefix are read in vain


def counts(decoder: Decoder, positions: int, rows: int, piece: int) -> dict[Group, int]:
    """Blocks of each group for `positions` in all, of at most `rows` requests at a time that are read in pieces of so
    many tokens: layers with a window need less, and as much again is for prefixes that may be asked for."""
    found: dict[Group, int] = {}
    blocks = -(-positions // SIZE)
    for group in bytes_of(decoder.spec, SIZE, decoder.dtype):
        if group == "state":
            found[group] = 3 * rows + 1
        elif group is None:
            found[group] = blocks
        else:
            found[group] = min(blocks, 2 * rows * reach(group, piece))
    return found


def reach(window: int, piece: int) -> int:
    """Blocks that a piece of a text touches in layers with a window, however it lies."""
    return -(-(window + piece) // SIZE) + 1


def nbytes(decoder: Decoder, blocks: Mapping[Group, int]) -> int:
    """Of so many blocks of each group."""
    return sum(count * blocks[group] for group, count in bytes_of(decoder.spec, SIZE, decoder.dtype).items())


def positions_in(decoder: Decoder, room: int, rows: int, piece: int) -> int:
    """For how many positions so many bytes are enough; see `counts`."""
    low, high = 0, 2**40
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if nbytes(decoder, counts(decoder, middle, rows, piece)) <= room else (low, middle - 1)
        )
    return low // SIZE * SIZE


def room_left(decoder: Decoder) -> int | None:
    """Bytes for a cache where the model is: all that is left on a CPU, nine tenths of it on a GPU, where passes need
    some; None where the system does not say."""
    device = decoder.embedding.weight.device
    return torch.cuda.mem_get_info(device)[0] * 9 // 10 if device.type == "cuda" else memory.available()


def bytes_for(decoder: Decoder, wanted: float | None) -> int:
    """What a cache may take: bytes, or a share of up to 1 of what is left (default: a half). Raises ValueError for what
    it cannot be."""
    share = SHARE if wanted is None else wanted
    if share <= 0:
        raise ValueError(f"the memory for the cache is {wanted}; give a number of bytes, or a share of up to 1")
    if share > 1:
        return int(share)
    if (left := room_left(decoder)) is None:
        raise ValueError("this system does not say how much memory is left; give the cache's in bytes")
    return int(share * left)


class Store:
    """Blocks for requests. What a method takes and gives back is counted; nothing is ever lost."""

    def __init__(self, model: Decoder, blocks: Mapping[Group, int], piece: int, share: bool = True):
        self.share, self.piece, self.size = share, piece, SIZE
        self.pools = Pools(model.spec, blocks, SIZE, model.dtype, model.embedding.weight.device)
        self.groups: dict[Group, Blocks] = {group: Blocks(count) for group, count in blocks.items()}
        self.windows = {group: group for group in blocks if isinstance(group, int)}
        scalings = [each.rope.scaling for each in model.spec.attentions if each.rope is not None]
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
                self._clear(request.tables[group][0])
        return True

    def release(self, request: Request) -> None:
        """Take all blocks back; the last first, so that what begins a text is kept longest."""
        for group, table in request.tables.items():
            for block in reversed(table):
                if block != GONE:
                    self.groups[group].drop(block)
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
        """Let a request that has nothing use what is there of its prefix: all but its last token, at most, whose logits
        are wanted."""
        salt = self.salt(request)
        if request.salted != salt:
            request.salted, request.names = salt, []
        if not (self.share and self._lasting(request)):
            return
        names = extended(request.names, request.ids(0, request.length), self.size, salt)
        count = self._longest(names[: (request.length - 1) // self.size])
        if not count:
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
                self.pools.copy(group, source, request.tables[group][0])
                blocks.drop(source)
                continue
            first = self._reached(group, count)
            found = [blocks.find(name) for name in names[first:count]]
            request.tables[group] = [GONE] * first + [blocks.share(block) for block in found if block is not None]
        request.named, request.computed, request.cached = count, count * self.size, count * self.size

    def ahead(self, request: Request) -> int:
        """How many of its tokens may be read in one piece: where there is a state to keep, up to the last end of a
        block that another request with this beginning could go on from."""
        boundary = (request.length - 1) // self.size * self.size
        keeps = self.share and "state" in self.groups and request.computed < boundary
        return (boundary if keeps else request.length) - request.computed

    def salt(self, request: Request) -> bytes:
        """What its keys depend on beside the tokens: LongRoPE turns all of them by the length of the whole."""
        return bytes(request.length > each for each in sorted(self.long)) + request.salt

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
        names = extended(request.names, request.ids(0, request.computed), self.size, request.salted)
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
        self.pools.copy("state", request.tables["state"][0], copy)
        blocks.name(copy, name)
        blocks.drop(copy)
        if request.snapshot is not None:  # of new tokens the last state will do
            blocks.unname(*request.snapshot)
        request.snapshot = (copy, name) if request.computed > len(request.row.prompt) else None

    @torch.inference_mode()
    def _clear(self, block: int) -> None:
        for layer in self.pools.of("state"):
            assert isinstance(layer, StatePool)
            layer.clear(block)
