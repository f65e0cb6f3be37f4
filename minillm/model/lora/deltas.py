"""What an adapter adds to the matrices of a model: LoRA (Hu et al., arXiv:2106.09685), DoRA (Liu et al., 2402.09353).

    LoRA    y = W x + b + s B A x                     s = alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732)
    DoRA    y = b + m / |W + s B A| (W x + s B A x)   |·| of each row, which gets no gradient

A matrix here may hold several of a checkpoint's, one under the other, and each has an A and a B of its own: x goes
through one product with all A stacked, and what comes out through one with all B, block by block. The sum is in fp32
and rounded once, as PEFT has it.

Shapes: I inputs, O outputs of the whole matrix, R rank, P rows of a part, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model import held


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
            low = self._low(x.float(), made.a, module.training)
            total = _InPlace.apply(total.clone() if total._is_view() else total, low, made.b)
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
        added = []
        for start, values in self.biases:
            assert bias is not None  # whose values these replace
            added.append((start, values - bias[start : start + len(values)].float()))
        for part in self.parts:
            if part.bias is not None:
                of_b, factor = part.bias * part.scale, factors.get(part.start)
                added.append((part.start, of_b if factor is None else of_b * factor))
        if added:
            made.offset = torch.stack([_placed([each], outputs, at) for each in added]).sum(0)
        self.kept = None if trained else made
        return made

    def merged(self, weight: Tensor, bias: Tensor | None = None, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """Rows of the parameter from `start` on, `[n, I]`, or all of `[E, O, I]`, with the adapter in them, and of its
        bias `[n]`; both fp32. Raises ValueError where it adds a bias to what has none."""
        made, kept = weight.to(torch.float32, copy=True), None if bias is None else bias.to(torch.float32, copy=True)
        for at, values in self.biases:
            some, rows = _within(at, len(values), start, made.shape[-2])
            if kept is not None:
                kept[rows] = values[some]
        for part in self.parts:
            some, rows = _within(part.start, part.b.shape[-2], start, made.shape[-2])
            summed, factor = made[..., rows, :] + part.scale * (part.b[..., some, :] @ part.a), torch.ones(())
            if part.magnitude is not None:
                factor = part.magnitude[some] / torch.linalg.vector_norm(summed, dim=-1)
                summed = summed * factor[:, None]
            made[..., rows, :] = summed
            if part.bias is not None and kept is None:
                raise ValueError("the adapter adds a bias (lora_bias) to a matrix that has none; it cannot be merged")
            if part.bias is not None and kept is not None:
                kept[rows] += part.scale * part.bias[some] * factor
        return made, kept

    def of_expert(self, expert: int) -> Deltas:
        """What it adds to the matrix of one expert."""
        return Deltas([replace(part, a=part.a[expert], b=part.b[expert]) for part in self.parts])


class _InPlace(torch.autograd.Function):
    """y + low Bᵀ in y's memory: y `[..., O]` was made for this, and to make one more costs more than the product."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, low: Tensor, b: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        ctx.save_for_backward(low, b)
        y.flatten(0, -2).addmm_(low.flatten(0, -2), b.T)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, b = ctx.saved_tensors
        return dy, dy @ b, dy.flatten(0, -2).T @ low.flatten(0, -2)


def _within(at: int, count: int, start: int, rows: int) -> tuple[slice, slice]:
    """What `count` rows from `at` on and `rows` from `start` on have in common: its place in these, and in those."""
    first = min(max(at, start), start + rows)
    last = max(min(at + count, start + rows), first)
    return slice(first - at, last - at), slice(first - start, last - start)


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

    def merged(self, weight: Tensor, bias: None = None, start: int = 0) -> tuple[Tensor, None]:
        """Rows of the table from `start` on, `[n, E]`, with the adapter in them, fp32."""
        columns = self.a[:, start : start + len(weight)]
        return torch.addmm(weight.float(), columns.T, self.b.T, alpha=self.scale), None
