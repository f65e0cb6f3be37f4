"""Attention and a recurrent layer side by side on the same x, each with what it keeps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from minillm.model.attention import GroupedQueryAttention, Step
from minillm.model.recurrent.state_space import StateSpace
from minillm.ops import Ops
from minillm.spec import Beside as Spec


class Beside(nn.Module):
    """x `[B, T, E]` -> `[B, T, E]`; the cache is a pair, that of attention first."""

    def __init__(self, spec: Spec, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.attention = GroupedQueryAttention(spec.attention, hidden_size, ops)
        self.recurrent = StateSpace(spec.recurrent, hidden_size, ops)

    def forward(self, x: Tensor, step: Step, cache: Any) -> Tensor:
        of_keys, of_states = (None, None) if cache is None else cache
        (one, two), seen = self.spec.factors, self.attention(x, step, of_keys)
        return one * seen + two * self.recurrent(x, step, of_states)
