"""The vocabulary: what a decoder is made of, as small frozen dataclasses without a line of torch.

A model is a tuple of `Layer`s, each with its own attention and feed-forward, so that a model whose layers alternate
is a list comprehension in its family file and never a condition in the model. A family file turns a config into a
`Decoder`; `model.py` turns a `Decoder` into modules. Read this file first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]
RopeLayout = Literal["half", "interleaved"]
NormCast = Literal["before_weight", "after_weight"]


@dataclass(frozen=True)
class Norm:
    """RMSNorm, y = (offset + w) * x / rms(x), computed in fp32 (Zhang & Sennrich, arXiv:1910.07467).

    `cast` says where the value is rounded to the model's dtype: before the product with the weight (the family of
    Llama) or after it. The two differ in over a quarter of all bf16 outputs.
    """

    eps: float
    offset: float = 0.0
    cast: NormCast = "before_weight"


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every frequency divided by `factor` (arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """Dynamic NTK: the base grows with the length once it passes `original_positions`."""

    factor: float
    original_positions: int


@dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a linear blend between (Llama 3.1, arXiv:2407.21783)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: a ramp over dimensions from interpolation to extrapolation; cos and sin times `attention_factor`
    (Peng et al., arXiv:2309.00071)."""

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al., arXiv:2104.09864) of the first `dim` values of each head.

    `layout` says which values form a pair: "half" (i, i + dim/2), or "interleaved" (2i, 2i + 1).
    """

    dim: int
    theta: float
    layout: RopeLayout = "half"
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention (Ainslie et al., arXiv:2305.13245): num_heads / num_kv_heads query heads share a kv head.

    `window` = W: a query sees itself and the W - 1 positions before it; None: all of them.
    `qk_norm`: each head of q and k is normalised over head_dim before the rotation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Norm | None = None


@dataclass(frozen=True)
class GatedMLP:
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202); SwiGLU when the activation is silu."""

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True)
class Layer:
    """h = x + attention(attention_norm(x)), then h + ffn(ffn_norm(h))."""

    attention_norm: Norm
    attention: GQA
    ffn_norm: Norm
    ffn: GatedMLP


@dataclass(frozen=True)
class Decoder:
    """Embedding, layers, final norm, and a head that is the embedding itself when `tied`.

    `context` is the number of positions that the published model is meant for; generation refuses to go beyond it.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    final_norm: Norm
    tied: bool
    context: int
