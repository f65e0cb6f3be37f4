"""Stacks of matrices that a checkpoint has where a model has other rows between them.

X.gate_proj.weight [E, F, H]   and X.up_proj.weight: gate and up of all experts of a layer, each in a tensor. A model
                               has both of an expert side by side: one tensor for each expert, X.E.gate_proj.weight
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from minillm.weights.source import InFile

APART = re.compile(r"(.*\.)((?:gate|up)_proj\.weight)")
MOST = 65536  # experts


def unstacked(name: str, stored: object) -> Iterator[tuple[str, InFile]]:
    """The matrices of such a stack by name; nothing of any other tensor."""
    if isinstance(stored, InFile) and len(stored.shape) == 3 and (named := APART.fullmatch(name)):
        count, *shape = stored.shape
        size = stored.nbytes // max(count, 1)
        for e in range(count if count <= MOST else 0):
            one = replace(stored, shape=tuple(shape), start=stored.start + e * size, nbytes=size)
            yield f"{named[1]}{e}.{named[2]}", one
