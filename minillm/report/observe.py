"""Looking inside a model that runs: what each module was given and gave, and each op, without changing either.

Study tools are built on this: `diff` compares, `lens` and `routes` show.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from minillm.ops.reference import by_distance, softmax_of_scores
from minillm.ops.visibility import Visibility


@dataclass(frozen=True)
class Call:
    """One call of an op or a module: the module's dotted name in the model, what it was given, and what it gave."""

    module: str
    op: str  # a field of `Ops`, or "" for the module itself
    given: tuple[Any, ...]
    options: dict[str, Any]
    result: Any


@contextlib.contextmanager
def ops(model: nn.Module, *names: str) -> Iterator[list[Call]]:
    """Every call of these fields of `Ops` meanwhile, in order, with the module that made it."""
    calls: list[Call] = []
    owners = [(name, module, module.ops) for name, module in model.named_modules() if hasattr(module, "ops")]

    def noted(owner: str, name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            result = op(*given, **options)
            calls.append(Call(owner, name, given, options, result))
            return result

        return call

    for owner, module, before in owners:
        module.ops = dataclasses.replace(before, **{name: noted(owner, name, getattr(before, name)) for name in names})
    try:
        yield calls
    finally:
        for _, module, before in owners:
            module.ops = before


@contextlib.contextmanager
def modules(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Call]]:
    """The last call meanwhile of each module named."""
    found: dict[str, Call] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, given, options, result: found.__setitem__(name, Call(name, "", given, options, result))

    hooks = [model.get_submodule(name).register_forward_hook(note(name), with_kwargs=True) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attention_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visibility,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """What the op `attention` weighs its values with, from what it is given: fp32 (fp64 for fp64 inputs)
    `[B, H, T, S]`, 0 where a query does not see. Rows sum to 1, with sinks to less."""
    exact = torch.promote_types(q.dtype, torch.float32)
    groups = rearrange(q, "B (K G) T D -> B K G T D", K=k.shape[1]).to(exact)
    scores = groups @ k.unsqueeze(2).transpose(-1, -2).to(exact) * (q.shape[-1] ** -0.5 if scale is None else scale)
    bias = None if slopes is None else slopes.to(exact).view(k.shape[1], -1, 1, 1) * visible.distances
    if added is not None:
        own = by_distance(added.to(exact), visible.distances, k.shape[1])
        bias = own if bias is None else bias + own
    weights = softmax_of_scores(scores, visible.mask, visible.causal, softcap, sinks, bias)
    return rearrange(weights, "B K G T S -> B (K G) T S")
