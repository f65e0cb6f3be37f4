"""What all layers of one forward pass share.

Shapes: B batch, T new tokens, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from minillm.model.ragged import Ragged
from minillm.ops.visibility import Visibility
from minillm.spec import Rope


@dataclass(frozen=True)
class Step:
    """The tokens from position `start` on, and what is computed once for all layers."""

    start: int
    rotary: dict[Rope, tuple[Tensor, Tensor]]  # cos and sin `[B or 1, T, dim/2]`
    visible: dict[int | None, Visibility]  # by window
    slots: dict[int | None, Tensor | None]  # by window, as `Visibility.slots` gives them
    positions: Tensor | None = None  # int64 `[B or 1, T]`: those of the tokens
    first: int | Tensor = 0  # the position of the first token, int64 `[B]` where only the device knows it
    real: Tensor | None = None  # bool `[B, T, 1]`, false where a row is padded; None where none is
    embedded: Tensor | None = None  # `[B, T, E]`: what the first layer is given, where others look at it too
    per_layer: Tensor | None = None  # `[B, T, layers, P]`: what each layer is told of a token
    kv: dict[int, Any] = field(default_factory=dict)  # keys and values, or the pool of them, that other layers read too
    chosen: dict[int, Any] = field(default_factory=dict)  # what queries see, by layers whose choice counts in others
    ragged: Ragged | None = None  # where the tokens are of many sequences
    tokens: Tensor | None = None  # int64 `[B, T]`
