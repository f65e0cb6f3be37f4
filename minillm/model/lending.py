"""What layers borrow from earlier ones: keys and values, a choice of keys, the weights of a block."""

from __future__ import annotations

from typing import Any

from torch import nn

from minillm.model.recurrent.fronted import Fronted
from minillm.spec import Decoder


def lend(layers: nn.ModuleList, decoder: Decoder) -> None:
    """Tell the layers of a decoder what they lend to later ones, and from which layer they borrow."""
    made: list[Any] = [layer.attention for layer in layers]
    for index in {each.lender for each in decoder.attentions if each.lender is not None}:
        made[index].lent_as = index
    for each in made:
        if isinstance(each, Fronted) and each.spec.block.of is not None:
            each.block.lender = (made[each.spec.block.of].block,)
