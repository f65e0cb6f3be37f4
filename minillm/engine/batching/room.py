"""How much memory a cache takes: blocks for so many positions, positions in so many bytes, and how many are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from minillm.engine.completion import Completion
from minillm.guard import memory
from minillm.model.decoder import Decoder
from minillm.model.pools import Group, bytes_of

MAX_ROWS = 32
BUDGET = 2048  # tokens of a pass: bounds masks and activations
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


def bytes_for(decoder: Decoder, wanted: float | None, owed: int = 0) -> int:
    """What a cache may take: bytes, or a share of up to 1 of what is left (default: a half), less what is `owed` to
    weights that come later. Raises ValueError for what it cannot be."""
    share = SHARE if wanted is None else wanted
    if share <= 0:
        raise ValueError(f"the memory for the cache is {wanted}; give a number of bytes, or a share of up to 1")
    if share > 1:
        return int(share)
    if (left := room_left(decoder)) is None:
        raise ValueError("this system does not say how much memory is left; give the cache's in bytes")
    return int(share * max(left - owed, 0))


def room_for(model: Decoder, rows: Sequence[Completion], max_rows: int) -> int:
    """Positions for the largest requests that can be under way together, or as many as fit into what memory is left.
    Raises ValueError where a prompt alone does not."""
    sizes = sorted((-(-(len(row.prompt) + row.max_new_tokens) // SIZE) * SIZE for row in rows), reverse=True)
    wanted, least = sum(sizes[:max_rows]), max(len(row.prompt) for row in rows) + SIZE
    if (left := room_left(model)) is None:
        return wanted
    fits = positions_in(model, left, max_rows, BUDGET)
    if fits < least:
        needed = nbytes(model, counts(model, least, max_rows, BUDGET))
        memory.refuse(needed, f"a cache of {least:,} positions", "take a shorter prompt")
    return min(wanted, max(fits, least))
