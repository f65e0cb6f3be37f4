"""Blocks whose weights several layers share."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.spec.attention import GQA
from minillm.spec.ffn import GatedMLP
from minillm.spec.norm import Norm
from minillm.spec.recurrent import StateSpace


@dataclass(frozen=True)
class SharedBlock:
    """y = W ffn(ffn_norm(attention(norm([x, e])))), of the hidden states x and the embedding e of the same token, side
    by side (Glorioso et al., Zamba, arXiv:2405.16712).

    Its weights are those of the layer `of`, None for its own; each layer has W, and changes of rank `rank`, of what
    makes gate and up, and if it `changes_attention` of what makes q, k and v, W x + U V x (arXiv:2411.15242).
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
    """A state space behind a shared block, on the sum of x and what that makes: recurrent(norm(x + block(x)))."""

    block: SharedBlock
    norm: Norm
    recurrent: StateSpace
