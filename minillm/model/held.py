"""Parameters that stay quantised in memory and are multiplied as they are, or dequantised each time they are used.

A held parameter `name` of a module lies in the parts of its form (`weights/forms.py`): its values under its own name,
and companions called the same with an ending. Where its rows are in several forms each has a segment of them, whose
parts are called name@row. What is saved is memory, and with it the time to read it; what it costs is arithmetic at
every use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minillm.ops.stacked import GroupedMatrices, HeldMatrices
from minillm.weights.forms import ORDER, Parts, Plain, Segment
from minillm.weights.fp8 import Fp8
from minillm.weights.grouped import Grouped
from minillm.weights.ints import Int4, Int8, Integers

PIECE = 2**23  # values of a matrix that are dequantised at a time in training


@dataclass(frozen=True)
class Held:
    """How a parameter is held, and what else is known of the plain one: its shape, and the type to compute in."""

    segments: tuple[Segment, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


def integers(model: nn.Module, scheme: Int8 | Int4) -> dict[str, Integers]:
    """Which parameters of a model become which integers: all that a product or a lookup can take so.

    Embedding and head have more bits than 4 under int4 too: with those they would add about half as much perplexity as
    all other matrices together.
    """
    found: dict[str, Integers] = {}
    for name, shape in holdable(model).items():
        owner = name.split(".")[-2]
        if shape[0] > 1:  # not the gate of a shared expert
            found[name] = scheme.outer if owner in ("embedding", "head") else scheme
    return found


def hold(model: nn.Module, held: Mapping[str, tuple[Segment, ...]]) -> None:
    """Lay the named parameters of a model on the meta device out in their forms."""
    for name, segments in held.items():
        owner, _, leaf = name.rpartition(".")
        module, plain = model.get_submodule(owner), model.get_parameter(name)
        shape = tuple(plain.shape)
        for segment in segments:
            for ending, (size, dtype) in segment.parts(shape).items():
                part = nn.Parameter(torch.empty(size, dtype=dtype, device="meta"), requires_grad=False)
                module.register_parameter(f"{leaf}{ending}", part)
        module.held = {**held_in(module), leaf: Held(segments, shape, plain.dtype)}  # type: ignore[assignment]


def holdable(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The parameters that their modules multiply as they lie, and their shapes."""
    found = {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if leaf in getattr(model.get_submodule(owner), "MULTIPLIED", ()):
            found[name] = tuple(parameter.shape)
    return found


def plain_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter as if none were held; companions have none."""
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for owner, module in model.named_modules():
        for leaf, held in held_in(module).items():
            for segment in held.segments:
                for ending in segment.parts(held.shape):
                    found.pop(f"{owner}.{leaf}{ending}")
            found[f"{owner}.{leaf}"] = held.shape
    return found


def held_in(module: nn.Module) -> Mapping[str, Held]:
    """What of a module is held, by the parameter's name in it."""
    return module.__dict__.get("held", {})


def _parts(module: nn.Module, leaf: str, segment: Segment) -> Parts:
    """The parts of a segment by their endings."""
    held = held_in(module)[leaf]
    shapes = segment.form.parts((*held.shape[:-2], segment.rows, held.shape[-1]))
    return {ending: getattr(module, f"{leaf}{segment.mark}{ending}") for ending in shapes}


def product(module: nn.Module, leaf: str, ops: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., I]` times a parameter `[O, I]` of a module, as it lies in memory, plus bias: `[..., O]`."""
    held = held_in(module).get(leaf)
    if held is None:
        return ops.linear(x, getattr(module, leaf), bias)
    if differentiable(x):
        y: Tensor = _Differentiable.apply(x, bias, module, leaf, ops)
        return y
    return _in_segments(module, leaf, ops, x, bias)


def differentiable(x: Tensor) -> bool:
    """Whether a gradient of x is wanted."""
    return x.requires_grad and torch.is_grad_enabled()


class _Differentiable(torch.autograd.Function):
    """y = x Wᵀ and dx = dy W, with W dequantised once more on the way back: by itself autograd would keep the numbers
    of every matrix until then, which is what holding them quantised saves. A large one, as of a head, is dequantised
    a piece at a time, on the way there too where no kernel takes it as it lies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, module: nn.Module, leaf: str, ops: Any) -> Tensor:
        ctx.module, ctx.leaf, ctx.dtype = module, leaf, x.dtype
        if x.device.type == "cpu" and math.prod(held_in(module)[leaf].shape) > PIECE:
            made = torch.cat([ops.linear(x, rows) for rows in _pieces(module, leaf, x.dtype)], dim=-1)
            return made if bias is None else made.add_(bias)
        return _in_segments(module, leaf, ops, x, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        total, at = None, 0
        for rows in _pieces(ctx.module, ctx.leaf, ctx.dtype):
            made = dy[..., at : at + len(rows)] @ rows
            total, at = made if total is None else total + made, at + len(rows)
        return total, dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None, None, None


def _pieces(module: nn.Module, leaf: str, dtype: torch.dtype) -> Iterator[Tensor]:
    """A held parameter `[O, I]` in blocks of rows of about PIECE values: all of a small one at once."""
    held = held_in(module)[leaf]
    if math.prod(held.shape) <= PIECE:
        yield matrix(module, leaf, dtype)
        return
    for segment in held.segments:
        if segment.ordered:
            yield _dequantised(module, leaf, segment, dtype)
            continue
        parts, columns = _parts(module, leaf, segment), held.shape[-1]
        for rows in torch.arange(segment.rows, device=parts[""].device).split(max(PIECE // columns, 1)):
            yield segment.form.lookup(parts, rows, columns, dtype)


def _in_segments(module: nn.Module, leaf: str, ops: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    held = held_in(module)[leaf]
    if len(held.segments) == 1:
        return _product(module, leaf, ops, x, held.segments[0], bias)
    biases = [None if bias is None else bias[each.start : each.start + each.rows] for each in held.segments]
    made = [_product(module, leaf, ops, x, *given) for given in zip(held.segments, biases, strict=True)]
    return torch.cat(made, dim=-1)


def _product(module: nn.Module, leaf: str, ops: Any, x: Tensor, segment: Segment, bias: Tensor | None) -> Tensor:
    found, form = _parts(module, leaf, segment), segment.form
    if segment.ordered:
        x = x.index_select(-1, getattr(module, f"{leaf}{segment.mark}{ORDER}"))
    if isinstance(form, Grouped):
        return ops.grouped_linear(x, found, form, segment.rows, bias)
    if isinstance(form, Fp8):
        return ops.fp8_linear(x, found[""], found["_scale"], bias, form.width)
    return ops.linear(x, found[""] if isinstance(form, Plain) else form.dequantise(found, x.shape[-1], x.dtype), bias)


def matrix(module: nn.Module, leaf: str, dtype: torch.dtype) -> Tensor:
    """A module's parameter `[..., O, I]` as numbers to compute with."""
    held = held_in(module).get(leaf)
    if held is None:
        return getattr(module, leaf)
    return torch.cat([_dequantised(module, leaf, each, dtype) for each in held.segments], dim=-2)


def _dequantised(module: nn.Module, leaf: str, segment: Segment, dtype: torch.dtype) -> Tensor:
    columns = held_in(module)[leaf].shape[-1]
    made = segment.form.dequantise(_parts(module, leaf, segment), columns, dtype)[..., : segment.rows, :]
    if not segment.ordered:
        return made
    return made[..., getattr(module, f"{leaf}{segment.mark}{ORDER}").argsort()]


def lookup(module: nn.Module, leaf: str, rows: Tensor) -> Tensor:
    """Some rows of a held parameter `[O, I]` of one segment, int64 `[...]` -> `[..., I]`; no other is dequantised."""
    held = held_in(module)[leaf]
    (segment,) = held.segments
    return segment.form.lookup(_parts(module, leaf, segment), rows, held.shape[-1], held.dtype)


def matrices(module: nn.Module, leaf: str, dtype: torch.dtype) -> Any:
    """A module's parameter `[E, O, I]`, to be asked for one matrix at a time."""
    held = held_in(module).get(leaf)
    if held is None:
        return getattr(module, leaf)
    (segment,), columns = held.segments, held.shape[-1]
    found, form = _parts(module, leaf, segment), segment.form
    if isinstance(form, Grouped):
        return GroupedMatrices(found, form, segment.rows, columns, dtype)
    return HeldMatrices(found, form, columns, dtype)
