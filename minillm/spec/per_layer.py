"""What each layer is told of a token besides the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.spec.ffn import Activation
from minillm.spec.norm import Norm


@dataclass(frozen=True)
class PerLayer:
    """Per-layer embeddings (Gemma 3n, 2025): a second table gives a token `size` values for each of `layers`, e =
    E[token]; a token beyond its `vocab_size` has the first row.

    With x the embedding that the first layer is given, layer l is told p = (norm(W_l x) + e_l) / sqrt(2), and adds to
    what it would return, h, norm(W_out (act(W_in h) * p)).
    """

    vocab_size: int
    layers: int
    size: int
    norm: Norm
    activation: Activation
