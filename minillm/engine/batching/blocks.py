"""The blocks of one group of layers: who uses them, and what the unused ones still hold.

A block that nobody uses keeps what was computed into it, under the name that its contents have (`names.py`), until it
is taken for something else: those without a name first, then the one that was given up longest ago. Whoever finds a
name can use the block again, beside others that do.
"""

from __future__ import annotations


class Blocks:
    """`count` blocks by their numbers: each is used by so many, or idle."""

    def __init__(self, count: int):
        self.count = count
        self.fresh = 0  # the first that was never used
        self.users: dict[int, int] = {}
        self.blank: list[int] = []  # idle and worth nothing
        self.kept: dict[int, None] = {}  # idle and named, in the order in which they were given up
        self.named: dict[bytes, int] = {}
        self.name_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """How many can be taken."""
        return self.count - len(self.users)

    def take(self) -> int:
        """A block for new contents; there must be one."""
        if self.blank:
            block = self.blank.pop()
        elif self.fresh < self.count:
            block, self.fresh = self.fresh, self.fresh + 1
        else:
            block = next(iter(self.kept))
            del self.kept[block], self.named[self.name_of.pop(block)]
        self.users[block] = 1
        return block

    def share(self, block: int) -> int:
        """One user more of a block that holds something."""
        self.kept.pop(block, None)
        self.users[block] = self.users.get(block, 0) + 1
        return block

    def drop(self, block: int) -> None:
        """One user less."""
        self.users[block] -= 1
        if not self.users[block]:
            del self.users[block]
            if block in self.name_of:
                self.kept[block] = None
            else:
                self.blank.append(block)

    def name(self, block: int, name: bytes) -> None:
        """Say what a block that is in use holds. Where another holds the same, that one stays the one to be found."""
        if name not in self.named and block not in self.name_of:
            self.named[name], self.name_of[block] = block, name

    def unname(self, block: int, name: bytes) -> None:
        """Take back the name of a block, where it still has it and nobody uses it."""
        if block in self.kept and self.name_of[block] == name:
            del self.kept[block], self.named[self.name_of.pop(block)]
            self.blank.append(block)

    def find(self, name: bytes) -> int | None:
        """The block that holds what has this name."""
        return self.named.get(name)
