"""Names of what blocks hold: equal where the same tokens, all before them included, were read in the same way.

A name is the SHA-256 of the name before it and of a block's token ids, so it stands for a whole prefix, and no other
prefix can be found or made that has it. The first name comes of a salt: what else keys and values depend on, such as
an adapter or whom they belong to.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from minillm.engine.inserted import Inserted


def extended(
    names: list[bytes], ids: Sequence[int], size: int, salt: bytes, inserted: Inserted | None = None
) -> list[bytes]:
    """Append the names of the blocks of `size` tokens that `ids` fill beyond those that are there; returns `names`.
    Where pictures are `inserted`, a block depends on those that it holds parts of."""
    for index in range(len(names), len(ids) // size):
        before = names[-1] if names else hashlib.sha256(salt).digest()
        block = array("q", ids[index * size : (index + 1) * size])
        mark = b"" if inserted is None else inserted.mark(index * size, (index + 1) * size)
        names.append(hashlib.sha256(before + block.tobytes() + mark).digest())
    return names
