"""Blocks whose weights several layers share."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.spec.attention import GQA
from minillm.spec.ffn import GatedMLP
from minillm.spec.norm import Norm
from minillm.spec.recurrent import StateSpace


@dataclass(frozen=True)
class SharedBlock:
    """y = W ffn(ffn_norm(attention(norm([x, e])))), where x is the hidden state and e the embedding of the same token
    (Glorioso et al., Zamba, arXiv:2405.16712).

    Layer `of` holds the weights; None: this layer does. Each layer has its own W and its own low-rank changes
    W x + U V x of rank `rank`, for gate and up, and with `changes_attention` also for q, k and v (arXiv:2411.15242).
    """

    norm: Norm
    attention: GQA
    ffn_norm: Norm
    ffn: GatedMLP
    rank: int
    changes_attention: bool = False
    of: int | None = None


@dataclass(frozen=True)
class Fronted:
    """A state space after a shared block: recurrent(norm(x + block(x)))."""

    block: SharedBlock
    norm: Norm
    recurrent: StateSpace
