"""The tensors of a PEFT adapter, and the rows of a model's parameters that each of them is for.

    base_model.model.  model.layers.0.self_attn.q_proj  .lora_A.weight      [r, in]
                       the stem, a module               .lora_B.weight      [out, r]

The stem is the name of a module of transformers: the family's weight table (`rules.py`) says which rows of a parameter
its weight fills, and how they lie, which the rows of B follow. Experts that lie in one parameter, `[E, out, in]`, come
in three spellings:

    experts.lora_A.weight [E r, in], experts.lora_B.weight [out, r E]   of one parameter; of two the first one's have
                                                                        `experts.base_layer` in their names
    the same, of matrices [E, in, out] as PEFT took them to be before 0.19: its product is the transposed one
    experts.3.gate_proj.lora_A.weight [r, in], …                        of every expert by itself

Rows of a fused A are those of the first expert, of the second, and so on; columns of B are the first of every expert,
the second of every expert, and so on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minillm.weights.layout import AnyLayout
from minillm.weights.rules import Destination, Rules, plan
from minillm.weights.save import published

PREFIX = "base_model.model."
INNER = ".base_layer"  # what PEFT puts between a module's name and that of a parameter of it
KINDS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",  # before PEFT 0.9
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
}
NEEDS = {"a": "b", "b": "a", "embedding_a": "embedding_b", "embedding_b": "embedding_a", "bias": "a", "magnitude": "a"}
FUSED = ("gate_up_proj", "down_proj")  # parameters of a module of experts, in the order in which PEFT wraps them


@dataclass
class Parts:
    """The tensors of an adapter: those of each stem by kind, and the new values of whole parameters."""

    stems: dict[str, dict[str, str]] = field(default_factory=dict)  # stem -> kind -> tensor
    whole: dict[str, str] = field(default_factory=dict)  # parameter, in transformers' words -> tensor


def parted(tensors: Collection[str]) -> Parts:
    """What each tensor of a file is, by its name. Raises ValueError for tensors that lack the other half of a pair."""
    found = Parts()
    for tensor in tensors:
        name = tensor.removeprefix(PREFIX)
        ending = next((each for each in KINDS if name.endswith(each)), None)
        if ending is None:
            found.whole[name.replace(INNER, "")] = tensor
        else:
            found.stems.setdefault(name.removesuffix(ending), {})[KINDS[ending]] = tensor
    alone = [kinds[kind] for kinds in found.stems.values() for kind in kinds if NEEDS.get(kind, kind) not in kinds]
    if alone:
        raise ValueError(f"{len(alone)} tensors lack the other half of their pair, such as {alone[0]}; copy it again")
    return found


class Names:
    """The names of a model's matrices: a checkpoint's, and transformers' own where they differ (`renamed`)."""

    def __init__(self, rules: Rules, destinations: Mapping[str, Destination], renamed: Mapping[str, str]):
        self.rules, self.destinations, self.renamed = rules, destinations, renamed

    def find(self, tensors: Collection[str]) -> tuple[dict[str, Destination], dict[str, int]]:
        """What checkpoint tensors of these names fill, of those that fill something; why others are left out."""
        found: dict[str, Destination] = {}
        reasons: dict[str, int] = {}
        ways = [self.renamed, *({key: value} for key, value in self.renamed.items())]
        for way in ({}, *ways):
            left = {_replaced(name, way): name for name in tensors if name not in found}
            planned = plan(list(left), self.rules, self.destinations)
            found |= {left[name]: to for name, to in planned.assignments.items()}
            reasons = reasons or planned.reasons
        return found, reasons

    def matrices(self) -> dict[str, Destination]:
        """All parameters in transformers' names."""
        found = {}
        for name, to in published(self.rules, self.destinations).items():
            for before, after in self.renamed.items():
                name = name.replace(before, after)
            found[name] = to
        return found

    def fused(self) -> dict[str, Destination]:
        """The parameters that hold all experts of a layer, in transformers' names."""
        wanted = {to.parameter for to in self.destinations.values() if to.whole is not None and len(to.whole) == 3}
        stems = {name.partition(".experts.")[0] for name, to in self.matrices().items() if to.parameter in wanted}
        named, _ = self.find([f"{stem}.experts.{leaf}" for stem in sorted(stems) for leaf in FUSED])
        return named


def _replaced(name: str, renamed: Mapping[str, str]) -> str:
    for before, after in renamed.items():
        name = name.replace(after, before)
    return name


def fused_name(
    stem: str, kinds: Collection[str], targets: Collection[str], width: int, names: Mapping[str, int]
) -> str:
    """The parameter that the pair of a module of experts is for. `kinds` are all stems of the file, `targets` what the
    config calls target_parameters, `width` that of A, `names` the parameters of the module and the widths of their
    matrices. Raises ValueError where nothing tells."""
    owner = stem.removesuffix(INNER)
    first, second = (f"{owner}.{leaf}" for leaf in FUSED)
    if stem.endswith(INNER):
        return first
    if f"{owner}{INNER}" in kinds:
        return second
    asked = [name for name in (first, second) if any(f".{name}".endswith(f".{target}") for target in targets)]
    fits = asked if len(asked) == 1 else [name for name, inputs in names.items() if inputs == width]
    if len(fits) != 1:
        raise ValueError(
            f"{stem}: nothing tells which of {' and '.join(FUSED)} it is for; name one in target_parameters of "
            "adapter_config.json"
        )
    return fits[0]


def of_experts(a: Tensor, b: Tensor, to: Destination, old: bool) -> tuple[Tensor, Tensor]:
    """A fused pair as `[E, r, in]` and `[E, out, r]`; `old` says that PEFT took the matrices for transposed ones.
    Raises ValueError for shapes that are not those of the parameter."""
    assert to.whole is not None
    count, outputs, inputs = to.whole
    rank, rest = divmod(len(a), count)
    shapes = (inputs, outputs) if not old else (outputs, inputs)
    if rest or (a.shape[1], len(b)) != shapes or b.shape[1] != len(a):
        raise ValueError(
            f"{list(a.shape)} and {list(b.shape)} are no pair for {count} experts of [{outputs}, {inputs}]"
        )
    split_a, split_b = a.view(count, rank, -1), b.view(-1, rank, count).permute(2, 0, 1)  # [E, r, .], [E, ., r]
    if old:
        split_a, split_b = split_b.transpose(1, 2), split_a.transpose(1, 2)
    return split_a.contiguous(), rows_of_experts(split_b, to)


def rows_of_experts(b: Tensor, to: Destination) -> Tensor:
    """B `[E, out, r]` in the order of the parameter's rows."""
    if to.layout is None:
        return b.contiguous()
    made = torch.empty(b.shape[0] * b.shape[1], b.shape[2])
    to.layout.copy(b.transpose(1, 2) if turns(to.layout) else b, made)
    return made.view_as(b)


def fused(a: Tensor, b: Tensor, to: Destination) -> tuple[Tensor, Tensor]:
    """The way back of `of_experts`: `[E, r, in]` and `[E, out, r]` -> `[E r, in]` and `[out, r E]`."""
    if to.layout is not None:
        lying = to.layout.restore(b.flatten(0, 1))
        b = lying.transpose(1, 2) if turns(to.layout) else lying
    return a.flatten(0, 1).contiguous(), b.permute(1, 2, 0).flatten(1).contiguous()


def turns(layout: AnyLayout) -> bool:
    """Whether a layout has a matrix's columns before its rows: `e h (f two) -> …`."""
    return layout.stored.rpartition(" ")[2] != layout.rows.rpartition(" ")[2]


def straight(values: Tensor, to: Destination) -> Tensor:
    """Values of each row of a tensor, `[out, …]`, in the order of the parameter's rows. Raises ValueError for a layout
    that moves more than rows."""
    if to.layout is None:
        return values
    if not to.layout.by_rows:
        raise ValueError(f"{to.parameter}: an adapter cannot follow the layout {to.layout.stored!r}")
    made = torch.empty_like(values)
    to.layout.copy(values, made)
    return made


def crooked(values: Tensor, to: Destination) -> Tensor:
    """The way back of `straight`."""
    return values if to.layout is None else to.layout.restore(values)


def of_one(to: Destination) -> tuple[Destination, int, int] | None:
    """Where rows of one expert's matrix lie: the whole parameter, the expert, and the first of its rows; None for what
    is no part of a stack of matrices."""
    if to.whole is None or len(to.whole) != 3 or to.shape[0] == to.whole[0] * to.whole[1]:
        return None
    expert, start = divmod(to.start, to.whole[1])
    return replace(to, start=0, shape=(to.whole[0] * to.whole[1], to.whole[2])), expert, start
