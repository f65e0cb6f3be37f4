"""Which adapters the tokens of a step go through, and what these add at each module (`deltas.py`).

A module has no more to do with it than to ask `adapted(self)`, which is None where there is no adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.lora.deltas import Deltas
from minillm.ops.reference import expert_product

NONE = bytes(32)  # as long as the others, which are digests: what follows is never taken for one


@dataclass
class Choice:
    """Which adapters the next step goes through: their names, each with the rows of x that do, int64 `[n]`, or None
    for all; `rest` are the rows of none. One object for all modules of a model. `known` has an identity of each adapter
    that a request can choose; where there are none, what is chosen holds for all."""

    rows: tuple[tuple[str, Tensor | None], ...] = ()
    rest: Tensor | None = None
    known: dict[str, bytes] = field(default_factory=dict)
    names: tuple[str | None, ...] = ()  # what `rows` were made of

    def each(self, names: Sequence[str | None], device: torch.device) -> None:
        """Let each row go through the adapter of this name, or through none."""
        if not self.known or tuple(names) == self.names:
            return
        self.names, chosen = tuple(names), list(dict.fromkeys(names))
        if len(chosen) < 2:
            self.rows, self.rest = tuple((name, None) for name in chosen if name is not None), None
            return
        at = {name: torch.tensor([i for i, each in enumerate(names) if each == name], device=device) for name in chosen}
        self.rest = at.pop(None, None)
        self.rows = tuple((name, rows) for name, rows in at.items() if name is not None)

    def checked(self, name: str | None) -> str | None:
        """The name. Raises ValueError where no adapter has it."""
        if name is not None and name not in self.known:
            there = f"there are {', '.join(self.known)}" if self.known else "none was loaded by name"
            raise ValueError(f"no adapter {name!r}; {there}")
        return name

    def identity(self, name: str | None) -> bytes:
        """What the keys of a request depend on that goes through an adapter of this name."""
        if self.known:
            return NONE if name is None else self.known[name]
        return "\n".join(name for name, _ in self.rows).encode()


@dataclass
class Adapted:
    """What adapters add at one module: parameter -> adapter -> what it adds."""

    choice: Choice
    of: dict[str, dict[str, Any]] = field(default_factory=dict)

    def chosen(self, leaf: str) -> list[tuple[Any, Tensor | None]]:
        """Those that count for a parameter now."""
        found = self.of.get(leaf, {})
        return [(found[name], rows) for name, rows in self.choice.rows if name in found]

    def added(self, module: nn.Module, leaf: str, x: Tensor, y: Tensor) -> Tensor:
        """y = x Wᵀ + b with what the adapters add."""
        for deltas, rows in self.chosen(leaf):
            if rows is None:
                y = deltas.added(module, leaf, x, y)
            else:
                flat_x, flat_y = x.flatten(0, -2), y.flatten(0, -2)
                some = deltas.added(module, leaf, flat_x[rows], flat_y[rows])
                y = flat_y.index_copy(0, rows, some).view_as(y)
        return y

    def matrix(self, module: nn.Module, leaf: str) -> Tensor:
        """The parameter with the adapters in it. Raises ValueError where not all rows go through the same ones."""
        weight = getattr(module, leaf)
        for deltas, rows in self.chosen(leaf):
            if rows is not None:
                raise ValueError("adapters of latent attention's kv_b_proj cannot be mixed in one batch; merge them")
            weight = deltas.merged(weight)[0].to(weight.dtype)
        return weight

    def looked_up(self, tokens: Tensor, y: Tensor) -> Tensor:
        """y `[B, T, E]`, rows of a table for tokens `[B, T]`, with what the adapters add."""
        for delta, rows in self.chosen("weight"):
            if rows is None:
                y = delta.added(tokens, y)
            else:
                flat, some = y.flatten(0, -2), tokens.flatten()[rows]
                y = flat.index_copy(0, rows, delta.added(some, flat[rows])).view_as(y)
        return y

    def groups(self, matrices: Mapping[str, Any]) -> list[tuple[Tensor | None, list[Any]]]:
        """Tokens that go through the same adapters, int64 `[n]` or None for all of them, and the matrices
        of experts with these; every token is in one group."""
        if all(rows is None for _, rows in self.choice.rows):
            return [(None, self._experts(matrices, [name for name, _ in self.choice.rows]))]
        found: list[tuple[Tensor | None, list[Any]]] = []
        found += [(rows, self._experts(matrices, [name])) for name, rows in self.choice.rows]
        return found if self.choice.rest is None else [*found, (self.choice.rest, list(matrices.values()))]

    def _experts(self, matrices: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        made = []
        for leaf, each in matrices.items():
            for name in names:
                deltas = self.of.get(leaf, {}).get(name)
                each = each if deltas is None else ExpertsWith(each, deltas)
            made.append(each)
        return made


class ExpertsWith:
    """The matrices `[E, O, I]` of experts and what an adapter adds to them: given to the op `experts` in their place.
    The products of a token with A and B are thin, so no matrix is made but where one is asked for."""

    def __init__(self, matrices: Any, deltas: Deltas):
        self.matrices, self.parts = matrices, deltas.parts
        # In pieces once: the gradient of one expert's piece would else be as large as that of all.
        self.pieces = [(part.a.unbind(), part.b.unbind()) for part in deltas.parts]

    def __getitem__(self, expert: int, /) -> Tensor:
        weight = self.matrices[expert]
        added = torch.zeros(weight.shape, device=weight.device)
        for part, (a, b) in zip(self.parts, self.pieces, strict=True):
            added[part.rows] += part.scale * (b[expert] @ a[expert])
        return (weight.float() + added).to(weight.dtype)

    def product(self, expert: int, x: Tensor, bias: Tensor | None) -> Tensor:
        """x `[N, I]` times the matrix of an expert, plus bias: `[N, O]`."""
        y = expert_product(x, self.matrices, expert, bias)
        made = [F.linear(F.linear(x.float(), a[expert]), b[expert]) * part.scale
                for part, (a, b) in zip(self.parts, self.pieces, strict=True)]  # fmt: skip
        end, columns = 0, []
        for part, values in zip(self.parts, made, strict=True):
            columns += [values.new_zeros(len(x), part.start - end), values]
            end = part.rows.stop
        added = torch.cat([*columns, y.new_zeros(len(x), y.shape[1] - end, dtype=torch.float32)], dim=1)
        return (y.float() + added).to(y.dtype)


def adapted(module: nn.Module) -> Adapted | None:
    """What adapters add at a module; None where none is."""
    found: Adapted | None = module.__dict__.get("adapted")
    return found


def put(module: nn.Module, leaf: str, name: str, choice: Choice, delta: Any) -> None:
    """Let an adapter add to a parameter of a module."""
    if adapted(module) is None:
        module.__dict__["adapted"] = Adapted(choice)
    module.__dict__["adapted"].of.setdefault(leaf, {})[name] = delta


def remove(model: nn.Module, name: str) -> None:
    """Let an adapter add to nothing any more."""
    for module in model.modules():
        if (found := adapted(module)) is not None:
            found.of = {
                leaf: left for leaf, each in found.of.items() if (left := {n: d for n, d in each.items() if n != name})
            }
            if not found.of:
                del module.__dict__["adapted"]


def taken(model: nn.Module, name: str) -> Mapping[tuple[str, str], Any]:
    """What an adapter adds, by module and parameter."""
    found = {}
    for owner, module in model.named_modules():
        changed = adapted(module)
        for leaf, by_name in changed.of.items() if changed else ():
            if name in by_name:
                found[owner, leaf] = by_name[name]
    return found
