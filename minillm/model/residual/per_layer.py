"""Per-layer embeddings (Gemma 3n, 2025): what each layer is told of a token besides the residual stream.

    p = (norm(W_model x / sqrt(E)) + sqrt(P) table[token]) / sqrt(2)         of all layers, before the first
    y = h + norm(W_out (act(W_gate h) * p_l))                                at the end of layer l

x is the embedding that the first layer is given, h what layer l would return. The table is read a row a token, so it
costs no time, and may lie in slower memory than what is multiplied.

Shapes: B batch, T new tokens, L layers, P values of each, E hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from minillm.model.attention import Step
from minillm.model.embedding import Embedding
from minillm.model.linear import Linear
from minillm.model.norm import Norm
from minillm.ops import Ops
from minillm.ops.activations import activate
from minillm.spec import PerLayer


class PerLayerEmbedding(nn.Module):
    """tokens int64 `[B, T]`, below `tokens`, and x `[B, T, E]` -> p `[B, T, L, P]`."""

    def __init__(self, spec: PerLayer, tokens: int, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.tokens = tokens
        self.embedding = Embedding(spec.vocab_size, spec.layers * spec.size)
        self.model = Linear(hidden_size, spec.layers * spec.size, ops)
        self.norm = Norm(spec.norm, spec.size, ops)

    def forward(self, tokens_BT: Tensor, x_BTE: Tensor) -> Tensor:
        if (count := self.spec.vocab_size) < self.tokens:
            tokens_BT = tokens_BT.where(tokens_BT < count, 0)
        rows = self.embedding(tokens_BT)
        own = rows * rows.new_full((), self.spec.size**0.5)  # rounded to the type of x, as the embedding's factor is
        shape = (*tokens_BT.shape, self.spec.layers, self.spec.size)
        context = self.norm((self.model(x_BTE) * x_BTE.shape[-1] ** -0.5).view(shape))
        return (context + own.view(shape)) * 2**-0.5


class PerLayerInput(nn.Module):
    """h `[B, T, E]` -> what layer `index` adds to it, `[B, T, E]`."""

    def __init__(self, spec: PerLayer, index: int, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = spec
        self.index = index
        self.gate = Linear(hidden_size, spec.size, ops)
        self.out = Linear(spec.size, hidden_size, ops)
        self.norm = Norm(spec.norm, hidden_size, ops)

    def forward(self, h: Tensor, step: Step) -> Tensor:
        assert step.per_layer is not None
        told = step.per_layer[:, :, self.index]
        return self.norm(self.out(activate(self.gate(h), self.spec.activation) * told))
