"""What an adapter adds to the matrices of a model: LoRA (Hu et al., arXiv:2106.09685), DoRA (Liu et al., 2402.09353).

    LoRA    y = W x + b + s B A x                     s = alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732)
    DoRA    y = b + m / |W + s B A| (W x + s B A x)   |·| of each row, which gets no gradient

A matrix here may hold several of a checkpoint's, one under the other, and each has an A and a B of its own: x goes
through one product with all A stacked, and what comes out through one with all B, block by block. The sum is in fp32
and rounded once, as PEFT has it.

Shapes: I inputs, O outputs of the whole matrix, R rank, P rows of a part, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model import held
from minillm.ops.reference import expert_product


@dataclass
class Part:
    """An adapter of the rows from `start` on: a `[R, I]`, b `[P, R]`, or `[E, R, I]` and `[E, P, R]` of experts, in
    fp32. `bias` `[P]` is added times the scale; `magnitude` `[P]` makes it DoRA."""

    start: int
    a: Tensor
    b: Tensor
    scale: float
    bias: Tensor | None = None
    magnitude: Tensor | None = None
    dropout: float = 0.0

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.b.shape[-2])

    def tensors(self) -> Iterator[Tensor]:
        return (each for each in (self.a, self.b, self.bias, self.magnitude) if each is not None)


@dataclass
class Joined:
    """What is multiplied: a `[sum of R, I]`, b `[O, sum of R]`, and by row what is added, and how much of W x."""

    a: Tensor
    b: Tensor
    offset: Tensor | None
    share: Tensor | None


@dataclass
class Deltas:
    """What one adapter adds to one parameter `[O, I]`, and to its bias: `biases` are new values of rows of it from a
    row on."""

    parts: list[Part] = field(default_factory=list)
    biases: list[tuple[int, Tensor]] = field(default_factory=list)
    kept: Joined | None = None  # of parts that are not trained

    def tensors(self) -> Iterator[Tensor]:
        for part in self.parts:
            yield from part.tensors()
        yield from (values for _, values in self.biases)

    @property
    def trained(self) -> bool:
        return any(each.requires_grad for each in self.tensors())

    def added(self, module: nn.Module, leaf: str, x: Tensor, y: Tensor) -> Tensor:
        """y `[..., O]`, which is x `[..., I]` times the parameter plus bias, with the adapter; in y's dtype."""
        made, bias = self.joined(module, leaf), getattr(module, "bias", None)
        total = y.float()
        if made.share is not None:
            total = total + made.share * (total if bias is None else total - bias.float())
        if self.parts:
            total = total + F.linear(self._low(x.float(), made.a, module.training), made.b)
        return (total if made.offset is None else total + made.offset).to(y.dtype)

    def _low(self, x: Tensor, a: Tensor, training: bool) -> Tensor:
        """A x, `[..., sum of R]`; each part drops values of its own, before A."""
        if not (training and any(part.dropout for part in self.parts)):
            return F.linear(x, a)
        if any(part.magnitude is not None for part in self.parts):
            raise ValueError("use_dora with lora_dropout is not trained here; set lora_dropout to 0")
        return torch.cat([F.linear(F.dropout(x, part.dropout), part.a) for part in self.parts], dim=-1)

    def joined(self, module: nn.Module, leaf: str) -> Joined:
        """All parts of a parameter of a module; made once where none is trained."""
        trained = self.trained
        if self.kept is not None and not trained:
            return self.kept
        (outputs, _), bias = _shape(module, leaf), getattr(module, "bias", None)
        factors = {part.start: _factor(module, leaf, part) for part in self.parts if part.magnitude is not None}
        blocks, end = [], 0
        for part in self.parts:
            b, factor = part.b * part.scale, factors.get(part.start)
            blocks += [b.new_empty(part.start - end, 0), b if factor is None else b * factor[:, None]]
            end = part.rows.stop
        made = Joined(*_stacked(self.parts, [*blocks, torch.empty(outputs - end, 0)]), None, None)
        at = self.parts[0].a.device if self.parts else self.biases[0][1].device
        if factors:
            made.share = _placed([(start, factor - 1) for start, factor in factors.items()], outputs, at)
        added = [(start, values - bias[start : start + len(values)].float()) for start, values in self.biases]
        for part in self.parts:
            if part.bias is not None:
                of_b, factor = part.bias * part.scale, factors.get(part.start)
                added.append((part.start, of_b if factor is None else of_b * factor))
        if added:
            made.offset = sum(_placed([each], outputs, at) for each in added)
        self.kept = None if trained else made
        return made

    def merged(self, weight: Tensor, bias: Tensor | None, module: nn.Module, leaf: str) -> tuple[Tensor, Tensor | None]:
        """The parameter `[O, I]`, or `[E, O, I]`, with the adapter in it, and its bias, both fp32."""
        weight = weight.float()
        if weight.dim() == 3:
            made = torch.zeros_like(weight)
            for part in self.parts:
                made[:, part.rows] += part.scale * (part.b @ part.a)
            return weight + made, bias
        made = self.joined(module, leaf)
        whole = weight if made.share is None else weight * (1 + made.share)[:, None]
        whole = torch.addmm(whole, made.b, made.a) if self.parts else whole
        if made.offset is None:
            return whole, bias
        return whole, made.offset + (0 if bias is None else bias.float())


def together(parts: Sequence[Part], outputs: int) -> tuple[Tensor, Tensor]:
    """One a `[E, sum of R, I]` and b `[E, O, sum of R]`, of the first part's scale, that add what these parts do."""
    start = 0
    a = torch.cat([part.a for part in parts], dim=1).detach()
    b = a.new_zeros(len(a), outputs, a.shape[1])
    for part in parts:
        rank = part.a.shape[1]
        b[:, part.rows, start : start + rank] = part.b.detach() * (part.scale / parts[0].scale)
        start += rank
    return a, b


def _stacked(parts: Sequence[Part], blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    if not parts:
        return torch.empty(0), torch.empty(0)
    if len(parts) == 1 and sum(map(len, blocks)) == len(blocks[1]):
        return parts[0].a, blocks[1]
    device = parts[0].a.device
    return torch.cat([part.a for part in parts]), torch.block_diag(*(each.to(device) for each in blocks))


def _placed(pieces: Sequence[tuple[int, Tensor]], outputs: int, device: torch.device) -> Tensor:
    """fp32 `[O]` with the pieces at their rows, and zeros."""
    ends = [(start, start + len(values), values) for start, values in sorted(pieces, key=lambda each: each[0])]
    made, end = list[Tensor](), 0
    for start, stop, values in ends:
        made += [torch.zeros(start - end, device=device), values]
        end = stop
    return torch.cat([*made, torch.zeros(outputs - end, device=device)])


def _shape(module: nn.Module, leaf: str) -> tuple[int, ...]:
    kept = held.held_in(module).get(leaf)
    return tuple(getattr(module, leaf).shape) if kept is None else kept.shape


def row_norms(module: nn.Module, leaf: str, part: Part) -> Tensor:
    """|W + s B A| of each row of a part, `[P]`."""
    with torch.no_grad():
        weight = held.matrix(module, leaf, torch.float32)[part.rows].float()
        return torch.linalg.vector_norm(torch.addmm(weight, part.b, part.a, alpha=part.scale), dim=1)


def _factor(module: nn.Module, leaf: str, part: Part) -> Tensor:
    assert part.magnitude is not None
    return part.magnitude / row_norms(module, leaf, part)


@dataclass
class Choice:
    """Which adapters the next step goes through: their names, each with the rows of x that do, int64 `[n]`, or None
    for all. One object for all modules of a model."""

    rows: tuple[tuple[str, Tensor | None], ...] = ()


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
            weight = deltas.merged(weight, None, module, leaf)[0].to(weight.dtype)
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

    def groups(self, matrices: Mapping[str, Any], x: Tensor) -> list[tuple[Tensor | None, list[Any]]]:
        """Tokens of x `[N, I]` that go through the same adapters, int64 `[n]` or None for all of them, and the matrices
        of experts with these; every token is in one group."""
        if all(rows is None for _, rows in self.choice.rows):
            return [(None, self._experts(matrices, [name for name, _ in self.choice.rows]))]
        found: list[tuple[Tensor | None, list[Any]]] = []
        left = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for name, rows in self.choice.rows:
            left[rows] = False
            found.append((rows, self._experts(matrices, [name])))
        return [*found, (left.nonzero().flatten(), list(matrices.values()))]

    def _experts(self, matrices: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        made = []
        for leaf, each in matrices.items():
            for name in names:
                deltas = self.of.get(leaf, {}).get(name)
                each = each if deltas is None else ExpertsWith(each, deltas)
            made.append(each)
        return made


@dataclass
class EmbeddingDelta:
    """s B A[:, token]: a `[R, V]`, b `[E, R]`."""

    a: Tensor
    b: Tensor
    scale: float

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.a, self.b)

    def added(self, tokens: Tensor, y: Tensor) -> Tensor:
        """y `[..., E]` of tokens `[...]`; in y's dtype."""
        return (y.float() + F.linear(F.embedding(tokens, self.a.T), self.b) * self.scale).to(y.dtype)

    def merged(self, weight: Tensor) -> Tensor:
        """The table `[V, E]` with the adapter in it, fp32."""
        return torch.addmm(weight.float(), self.a.T, self.b.T, alpha=self.scale)


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


def taken(model: nn.Module, name: str) -> Mapping[tuple[str, str], Any]:
    """What an adapter adds, by module and parameter."""
    found = {}
    for owner, module in model.named_modules():
        for leaf, by_name in (adapted(module).of if adapted(module) else {}).items():
            if name in by_name:
                found[owner, leaf] = by_name[name]
    return found
