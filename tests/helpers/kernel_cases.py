"""What all problems for kernels are made with: where sizes and values come from, how errors are counted, and kernels
with blocks small enough for Triton's interpreter.

Errors are in units of the last place of the type at the largest of what is summed to a result (`ulps`): rounding the
result costs half a unit, each operand that is rounded before half a unit more, and fp32 sums a few units of fp32.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

import minillm.ops.triton  # noqa: F401  with all kernels
from minillm import kernels
from minillm.kernels.tuning import Config

if TYPE_CHECKING:  # a GPU's machine may have no pytest
    import pytest

T = TypeVar("T")
Errors = dict[str, float]


class Pick(Protocol):
    """Where sizes come from: hypothesis, or a list of awkward ones."""

    def size(self, most: int, least: int = 1) -> int: ...

    def of(self, options: Sequence[T]) -> T: ...


class Case:
    """The draws of one problem: sizes by a `Pick`, values by a generator, in a type on a device."""

    def __init__(self, pick: Pick, dtype: torch.dtype, device: torch.device):
        self.size, self.of, self.dtype, self.device = pick.size, pick.of, dtype, device
        self.generator = torch.Generator().manual_seed(pick.size(99))

    def below(self, end: int) -> int:
        """A number from 0 to end - 1, where `size` may give more."""
        return min(self.size(end), end) - 1

    def maybe(self) -> bool:
        return self.of((False, True))

    def on(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def values(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.on(torch.randn(shape, generator=self.generator).to(dtype or self.dtype))

    def part(self, *shape: int) -> Tensor:
        """The left part of something wider: rows lie apart."""
        return self.values(*shape[:-1], shape[-1] + 3)[..., : shape[-1]]

    def integers(self, end: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return self.on(torch.randint(end, shape, generator=self.generator, dtype=dtype))


def exact(*tensors: Any) -> list[Any]:
    """In fp64 on the CPU, ready for gradients."""
    return [t.detach().double().cpu().requires_grad_() if isinstance(t, Tensor) else t for t in tensors]


def ulps(found: Tensor, expected: Tensor, terms: Tensor | None = None, dtype: torch.dtype | None = None) -> float:
    """The largest difference, in units at the largest of `terms`: by default the result itself."""
    if not found.numel():
        return 0.0
    assert found.shape == expected.shape
    largest = float((expected if terms is None else terms).detach().abs().max())
    error = (found.detach().double().cpu() - expected.detach()).abs().max()  # NaN where there is one
    return float(error / (torch.finfo(dtype or found.dtype).eps * max(largest, 1e-3)))


def with_gradients(
    case: Case, inputs: list[Tensor], run: Callable[..., Tensor], formula: Callable[..., Tensor], terms: Any = None
) -> Errors:
    """Errors of the result and of the gradient of each input; `terms` give what cancels in these, by number."""
    leaves, doubles = [each.detach().requires_grad_() for each in inputs], exact(*inputs)
    found, expected = run(*leaves), formula(*doubles)
    given = case.values(*expected.shape)
    ours = torch.autograd.grad(found, leaves, given.to(found.dtype))
    theirs = torch.autograd.grad(expected, doubles, given.double().cpu())
    cancelling = terms(*doubles, given.double().cpu()) if terms else {}
    errors = {
        f"gradient {i}": ulps(one, two, cancelling.get(i))
        for i, (one, two) in enumerate(zip(ours, theirs, strict=True))
    }
    return {"result": ulps(found, expected, cancelling.get("result"), case.dtype), **errors}


class Awkward:
    """Sizes at which kernels go wrong: one, a few, beside a power of two and of a block, and the most there may be."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def size(self, most: int, least: int = 1) -> int:
        return self.random.choice([n for n in (1, 3, 16, 17, 127, 129, most) if least <= n <= most])

    def of(self, options: Sequence[T]) -> T:
        return self.random.choice(options)


class Aligned(Awkward):
    """The largest multiples of 16, and more of the large ones: sizes of real models."""

    def __init__(self, seed: int, times: float = 1):
        super().__init__(seed)
        self.times = times

    def size(self, most: int, least: int = 1) -> int:
        return max(int(most // 16 * 16 * (self.times if most > 64 else 1)), 16) if most >= 16 else most


def poison(patch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN in every place: a value that a kernel forgets to write shows."""
    empty = torch.empty

    def poisoned(*shape: Any, **kind: Any) -> Tensor:
        made = empty(*shape, **kind)
        return made.fill_(float("nan") if made.is_floating_point() else -(2**31) if made.dtype != torch.uint8 else 255)

    patch.setattr(torch, "empty", poisoned)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Several blocks at sizes that Triton's interpreter can bear."""

    def small(*blocks: int) -> tuple[Config, ...]:
        return (Config("small", blocks, 4, 1),)

    for table in (kernels.attention.CONFIGS, kernels.attention.FP32, kernels.attention_backward.CONFIGS):
        for size in table:
            patch.setitem(table, size, small(16, 16))
    for module, name, blocks in (
        (kernels.decode_attention, "CONFIGS", (16,)), (kernels.mla_decode, "CONFIGS", (16, 16)),
        (kernels.moe, "CONFIGS", (16, 16, 16)), (kernels.moe, "FP32", (16, 16, 16)),
        (kernels.moe, "FEW_CONFIGS", (16, 16)), (kernels.fp8_linear, "FEW", (16, 16, 64)),
        (kernels.fp8_linear, "MANY", (32, 32, 32)), (kernels.fp8_linear, "FP32", (16, 16, 32)),
        (kernels.grouped_linear, "ONE", (1, 4, 8)), (kernels.grouped_linear, "FP32_ONE", (1, 4, 8)),
        (kernels.grouped_linear, "FEW", (16, 16, 64)), (kernels.grouped_linear, "MANY", (32, 32, 32)),
        (kernels.grouped_linear, "FP32", (16, 16, 32)), (kernels.delta_rule, "CONFIGS", (16, 16, 32)),
    ):  # fmt: skip
        patch.setattr(module, name, small(*blocks))
    for module, name, value in (
        (kernels.decode_attention, "LEAST", 16), (kernels.decode_attention, "PROGRAMS", 12),
        (kernels.moe, "COMBINED", 32), (kernels.cross_entropy, "BLOCK", 32), (kernels.cross_entropy, "CHUNK", 8),
        (kernels.sampling, "BLOCK", 32), (kernels.routing, "PLACES", 16),
        (kernels.delta_step, "DEPTH", 16),
        (kernels.grouped_linear, "LEAST", 128), (kernels.grouped_linear, "JOINED", 32),
    ):  # fmt: skip
        patch.setattr(module, name, value)
