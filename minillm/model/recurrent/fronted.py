"""A state space after a block of attention and MLP whose weights several layers share (Zamba 2, arXiv:2411.15242).

Shapes: B batch, T new tokens, E hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minillm.model.attention import GroupedQueryAttention, Step
from minillm.model.ffn import GatedMLP
from minillm.model.linear import Linear
from minillm.model.norm import norm
from minillm.model.recurrent.state_space import StateSpace
from minillm.ops import Ops
from minillm.spec import Fronted as Spec
from minillm.spec import SharedBlock as BlockSpec


class Change(nn.Module):
    """U V x: the low-rank change of a layer to a shared product. x `[B, T, inputs]` -> `[B, T, outputs]`."""

    def __init__(self, inputs: int, rank: int, outputs: Any, ops: Ops):
        super().__init__()
        self.down = Linear(inputs, rank, ops)
        self.up = Linear(rank, outputs, ops)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class SharedBlock(nn.Module):
    """x `[B, T, E]` -> `[B, T, E]`; a layer that has no block of its own is given its `lender`'s when all are built."""

    def __init__(self, spec: BlockSpec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.ranks = ops.ranks
        self.lender: tuple[SharedBlock, ...] = ()  # whose parts are not this one's
        if spec.of is None:
            self.norm = norm(spec.norm, 2 * hidden_size, ops)
            self.attention = GroupedQueryAttention(spec.attention, hidden_size, ops, 2 * hidden_size)
            self.ffn_norm = norm(spec.ffn_norm, hidden_size, ops)
            self.ffn = GatedMLP(spec.ffn, hidden_size, ops)
        made, inner = spec.attention, spec.ffn.intermediate_size
        keys = made.num_kv_heads * made.head_dim
        qkv = {"q": made.num_heads * made.head_dim, "k": keys, "v": keys}
        # one for each of q, k and v, as published
        ranks = {part: Change(2 * hidden_size, spec.rank, rows, ops) for part, rows in qkv.items()}
        self.qkv_change = nn.ModuleDict(ranks) if spec.changes_attention else None
        self.gate_up_change = Change(hidden_size, spec.rank, {"gate": inner, "up": inner}, ops)
        self.output = Linear(hidden_size, hidden_size, ops)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        held = self.lender[0] if self.lender else self
        assert step.embedded is not None
        both = held.norm(torch.cat((x, self.ranks.entered(step.embedded)), dim=-1))
        changes = self.qkv_change
        change = None if changes is None else torch.cat([changes[part](both) for part in "qkv"], dim=-1)
        x = held.ffn_norm(self._summed(held.attention(both, step, cache, change)))
        return self.output(self._summed(held.ffn(x, self.gate_up_change(x))))

    def _summed(self, y: Tensor) -> Tensor:
        """Over all ranks, each of which goes on with a part of its own."""
        return self.ranks.entered(self.ranks.total(y))


class Fronted(nn.Module):
    """x `[B, T, E]` -> `[B, T, E]`; the cache is a pair, that of attention first."""

    def __init__(self, spec: Spec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.block = SharedBlock(spec.block, hidden_size, ops)
        self.norm = norm(spec.norm, hidden_size, ops)
        self.recurrent = StateSpace(spec.recurrent, hidden_size, ops)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        of_keys, of_states = (None, None) if cache is None else cache
        return self.recurrent(self.norm(x + self.block(x, step, of_keys)), step, of_states)
