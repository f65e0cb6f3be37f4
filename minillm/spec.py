"""The vocabulary: what a decoder is made of, as small frozen dataclasses without a line of torch.

A model is a tuple of `Layer`s, each with its own attention and feed-forward, so that a model whose layers alternate
is a list comprehension in its family file and never a condition in the model. A family file turns a config into a
`Decoder`; `model/decoder.py` turns a `Decoder` into modules. Read this file first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]
RopeLayout = Literal["half", "interleaved"]
NormCast = Literal["before_weight", "after_weight"]
QKNormWidth = Literal["head", "all"]
RouterScore = Literal["softmax", "softmax_chosen", "sigmoid", "sparsemixer"]
GroupScore = Literal["max", "top2_sum"]


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
class LayerNorm:
    """y = w * (x - mean(x)) / std(x) + b, computed in fp32 (Ba et al., arXiv:1607.06450); not `affine`: without w and
    b."""

    eps: float
    affine: bool = True


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


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE: a divisor per frequency, `long_factors` once a sequence passes `original_positions`, else
    `short_factors`; cos and sin times the attention factor of the same regime (Ding et al., arXiv:2402.13753)."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_positions: int
    short_attention_factor: float
    long_attention_factor: float


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


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
class QKNorm:
    """The norms of q and k: `width` "head" normalises each head over head_dim, all heads with one weight; "all" the
    heads together over their full width."""

    norm: Norm | LayerNorm
    width: QKNormWidth = "head"


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention (Ainslie et al., arXiv:2305.13245): num_heads / num_kv_heads query heads share a kv head.

    `window` = W: a query sees itself and the W - 1 positions before it; None: all of them.
    `qk_norm`: q and k are normalised before the rotation. `clip`: q, k and v are then clamped to [-clip, clip].
    Scores are q kᵀ * `scale`, 1 / sqrt(head_dim) where None; with a `softcap` c they become c tanh(scores / c).
    `rope` None: nothing says where a key lies. `weakened` by "sinks", each head has one learned score more, that takes
    its share of the softmax and gives nothing to the sum; by a "gate", what the heads give is multiplied by
    sigmoid(W x), value by value (Qiu et al., arXiv:2505.06708).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QKNorm | None = None
    clip: float | None = None
    scale: float | None = None
    softcap: float | None = None
    weakened: Literal["sinks", "gate"] | None = None

    @property
    def sinks(self) -> bool:
        return self.weakened == "sinks"

    @property
    def gate(self) -> bool:
        return self.weakened == "gate"


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): k and v of all heads come from one latent vector of
    `kv_rank` values per position, and one rotary key of rope.dim values is shared by all heads.

    A head's q and k have nope_dim + rope.dim values, its v has v_dim. `q_rank`: q too goes through a latent; None: one
    plain projection. `latent_norm` is that of both latents. Scores are scaled by
    score_factor / sqrt(nope_dim + rope.dim). `bias` is on the projections into the latents and on the output.
    """

    num_heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    v_dim: int
    rope: Rope
    latent_norm: Norm
    score_factor: float = 1.0
    bias: bool = False

    window: ClassVar[None] = None  # latent attention sees all of the past


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention whose state, a k_dim x v_dim matrix for each v head, forgets and is corrected (Yang et al.,
    arXiv:2412.06464): S <- e^g S;  S <- S + k (beta (v - Sᵀ k))ᵀ;  o = Sᵀ q, k and q of length 1.

    Each k head serves num_v_heads / num_k_heads v heads side by side. q, k and v come through a causal convolution over
    `conv_kernel` positions and SiLU. `beta_factor`: beta = beta_factor * sigmoid(w x); above 1 a state may change its
    sign. Each head's o goes through `norm`, times silu(W x).
    """

    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    conv_kernel: int
    norm: Norm
    beta_factor: float = 1.0


Attention = GQA | MLA
Mixer = Attention | GatedDeltaNet  # what lets positions of a sequence see each other


@dataclass(frozen=True)
class ClampedSwiGLU:
    """What gpt-oss has for act(gate) * up: g sigmoid(alpha g) * (u + 1) with g = min(gate, limit) and u = up clamped to
    [-limit, limit] (gpt-oss model card, arXiv:2508.10925)."""

    alpha: float
    limit: float


@dataclass(frozen=True)
class GatedMLP:
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202); SwiGLU when the activation is silu."""

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True)
class MLP:
    """down(act(up(x))): no gate."""

    intermediate_size: int
    activation: Activation
    bias: bool = False


@dataclass(frozen=True)
class Router:
    """Which `top_k` of `num_experts` a token goes to and with what weights; everything in fp32.

    `score`: "softmax" over all experts, "softmax_chosen" over the chosen ones, "sigmoid" of each, or "sparsemixer"
    (Phi-3.5-MoE, arXiv:2409.12136: each pick has a softmax of its own over the experts within `jitter` of the best).
    `renormalize`: the chosen weights are divided by their sum; then all are multiplied by `scale`.
    `bias`: a correction is added to the scores for the choice, never to the weights (arXiv:2408.15664).
    Of `num_groups` equal groups only the `top_groups` with the best `group_score` may be chosen from.
    `standardize`: a token's logits are first brought to mean 0 and deviation 1 over the experts. `logit_bias`: they
    have a bias.
    """

    num_experts: int
    top_k: int
    score: RouterScore = "softmax"
    renormalize: bool = False
    scale: float = 1.0
    bias: bool = False
    num_groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"
    standardize: bool = False
    jitter: float = 0.0
    logit_bias: bool = False


@dataclass(frozen=True)
class MoE:
    """Mixture of experts (Shazeer et al., arXiv:1701.06538): the weighted sum of the chosen experts, each a gated MLP
    of `intermediate_size`, plus a `shared` one that every token goes through, times sigmoid(w x) with `shared_gate`.
    `bias`: each of an expert's three products has one."""

    router: Router
    intermediate_size: int
    activation: Activation | ClampedSwiGLU = "silu"
    shared: GatedMLP | None = None
    shared_gate: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Layer:
    """h = x + post_attention_norm(attention(attention_norm(x))), then h + post_ffn_norm(ffn(ffn_norm(h))).

    A norm that is None is left out. `parallel`: both see the same x, x + attention(attention_norm(x)) +
    ffn(ffn_norm(x)), and with ffn_norm None they share attention_norm.
    """

    attention_norm: Norm | LayerNorm | None
    attention: Mixer
    ffn_norm: Norm | LayerNorm | None
    ffn: GatedMLP | MLP | MoE
    post_attention_norm: Norm | LayerNorm | None = None
    post_ffn_norm: Norm | LayerNorm | None = None
    parallel: bool = False


@dataclass(frozen=True)
class Decoder:
    """Embedding, layers, final norm, and a head that is the embedding itself when `tied`, or has a bias.

    Embeddings are multiplied by `embedding_scale`, rounded to their dtype. With a `logit_softcap` c, logits become
    c tanh(logits / c).
    `context` is the number of positions that the published model is meant for; generation refuses to go beyond it.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    final_norm: Norm | LayerNorm
    tied: bool
    context: int
    head_bias: bool = False
    embedding_scale: float = 1.0
    logit_softcap: float | None = None

    @property
    def attentions(self) -> list[Attention]:
        """Those of the layers that have one."""
        return [layer.attention for layer in self.layers if isinstance(layer.attention, Attention)]
