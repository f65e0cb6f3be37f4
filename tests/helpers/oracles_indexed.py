"""What indexers choose. In fp32 each side chooses by itself; in bf16 rounding decides, so that both are given what fp32
chose: another key is no rounding error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minillm.model.indexer import BlockIndexer, Choosing
from minillm.ops import sparse
from minillm.ops.visibility import Visibility


def found(theirs: Any) -> list[nn.Module]:
    """Indexers of a model of transformers, but for those of entries: near ties of these few are left to rounding."""
    kinds = {each: type(each) for each in theirs.modules()}
    named = {each: kind.__name__ for each, kind in kinds.items() if not kind.__module__.startswith("minillm")}
    return [each for each, name in named.items() if name.endswith("Indexer") and not name.startswith("DeepseekV4")]


def _own(module: nn.Module) -> bool:
    return isinstance(module, Choosing)


def record(theirs: Any, choices: list[Tensor]) -> list[Any]:
    """Hooks that note the indices of each call."""
    return [each.register_forward_hook(lambda *call: choices.append(call[-1])) for each in found(theirs)]


@contextlib.contextmanager
def played(model: Any, choices: list[Tensor]) -> Iterator[None]:
    """Each call chooses as recorded, from the beginning."""
    chooses = found(model) or any(map(_own, model.modules()))  # a family may read no indexers of theirs
    if next(model.parameters()).dtype == torch.float32 or not choices or not chooses:
        yield
        return
    left = iter(choices)
    hooks = [each.register_forward_hook(lambda *call: next(left)) for each in found(model)]

    def narrowed(indexer: Choosing, queries: Any, keys: Tensor, visible: Visibility) -> Visibility:
        chosen = mask(indexer, next(left).long(), visible, keys.shape[1])
        return replace(visible, chosen=chosen) if keys.shape[1] > indexer.spec.most else visible

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Choosing, "narrowed", narrowed)
        yield
    assert next(left, None) is None, "more was chosen than played"
    for hook in hooks:
        hook.remove()


def mask(indexer: Choosing, chosen: Tensor, visible: Visibility, keys: int) -> Tensor:
    """Indices of keys `[B, T, n]`, or of blocks `[B, K, T, n]`, -1 where there are no more, as what queries see."""
    first, last = (each if each.dim() > 1 else each[None] for each in visible.spans)
    seen, chosen = sparse.visible(first, last, keys).unsqueeze(1), chosen if chosen.dim() == 4 else chosen.unsqueeze(1)
    size = indexer.spec.size if isinstance(indexer, BlockIndexer) else 1
    blocks = -(-keys // size)
    made = torch.zeros(*chosen.shape[:-1], blocks + 1, dtype=torch.bool)
    made.scatter_(-1, chosen.masked_fill((chosen < 0) | (chosen > blocks), blocks), True)
    return made[..., :blocks].repeat_interleave(size, dim=-1)[..., :keys] & seen
