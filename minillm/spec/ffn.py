"""Feed-forwards, and mixtures of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.spec.norm import Norm

Activation = Literal["silu", "gelu", "gelu_tanh"]
# relu2: max(x, 0)² (So et al., arXiv:2109.08668); quick_gelu: x sigmoid(1.702 x) (arXiv:1606.08415)
PlainActivation = Literal[Activation, "relu", "relu2", "quick_gelu"]
RouterScore = Literal["softmax", "softmax_chosen", "sigmoid", "sqrt_softplus", "sparsemixer"]
GroupScore = Literal["max", "top2_sum"]


@dataclass(frozen=True)
class ClampedSwiGLU:
    """In place of act(gate) * up: g sigmoid(alpha g) * (u + shift) with g = min(gate, limit) and u = up clamped to
    [-limit, limit] (gpt-oss model card, arXiv:2508.10925, with a shift of 1)."""

    alpha: float
    limit: float
    shift: float = 1.0


@dataclass(frozen=True)
class CappedSwiGLU:
    """In place of act(gate) * up: min(silu(gate), limit) * u with u = up clamped to [-limit, limit]; the gate is
    clamped after the activation (Step 3.5, 2026)."""

    limit: float


Gating = Activation | ClampedSwiGLU | CappedSwiGLU  # what a gated feed-forward has for act(gate) * up


@dataclass(frozen=True)
class GatedMLP:
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202); SwiGLU when the activation is silu.

    With a `sparsity` s gate(x) is first lowered by its mean plus its standard deviation times the s quantile of the
    normal distribution, and what falls below 0 becomes 0: about s of all values (Gemma 3n, 2025). `factors`: of gate(x)
    before its activation, and of what comes out.
    """

    intermediate_size: int
    activation: Gating = "silu"
    bias: bool = False
    sparsity: float = 0.0
    factors: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class XIELU:
    """a x² + b x where x > 0, else c (exp(min(x, least)) - 1 - x) + b x; a = softplus(t), c = b + softplus(s), with two
    learned numbers t and s (Huang and Schlag, arXiv:2411.13010)."""

    linear: float = 0.5  # b
    least: float = -1e-6


@dataclass(frozen=True)
class MLP:
    """down(act(up(x))): no gate."""

    intermediate_size: int
    activation: PlainActivation | XIELU
    bias: bool = False


@dataclass(frozen=True)
class Router:
    """Which `top_k` of `num_experts` a token goes to and with what weights; everything in fp32.

    `score`: "softmax" over all experts, "softmax_chosen" over the chosen ones, "sigmoid" or "sqrt_softplus" of each, or
    "sparsemixer" (Phi-3.5-MoE, arXiv:2409.12136: each pick has a softmax of its own over the experts within `jitter`
    of the best).
    `renormalize`: the chosen weights are divided by their sum; then all are multiplied by `scale`.
    `bias`: a correction is added to the scores for the choice, never to the weights (arXiv:2408.15664).
    Of `num_groups` equal groups only the `top_groups` with the best `group_score` may be chosen from.
    `normalize` "logits": a token's are first brought to mean 0 and deviation 1 over the experts. A norm: x goes through
    it and is divided by sqrt(hidden size) before they are made, and each expert has a learned factor on its weight.
    `logit_bias`: logits have a bias.
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
    normalize: Literal["logits"] | Norm | None = None
    jitter: float = 0.0
    logit_bias: bool = False


@dataclass(frozen=True)
class Ungated:
    """Experts without a gate, down(act(up(x)))."""

    activation: PlainActivation


@dataclass(frozen=True)
class MoE:
    """Mixture of experts (Shazeer et al., arXiv:1701.06538): the weighted sum of the chosen experts, each a gated MLP
    of `intermediate_size`, plus a `shared` one that every token goes through, times sigmoid(w x) with `shared_gate`.
    `bias`: each of an expert's products has one. With a `norm` the shared one and the experts have two of their
    own, norm(shared(norm(x))) + norm(sum of experts(norm(x))), and the router reads x itself. `latent`: the experts'
    inputs and outputs are projected to so many values; the router and the shared one see all of x. `own`: the first
    expert that this rank holds, and the one after its last; other ranks hold the others. `weighs_input`: the input of
    an expert is multiplied by its weight, not its output (Llama 4, 2025). `hashed`: a table for so many token ids
    chooses the experts (Roller et al., arXiv:2106.04426); the router only gives their weights."""

    router: Router
    intermediate_size: int
    activation: Gating | Ungated = "silu"
    shared: GatedMLP | MLP | None = None
    shared_gate: bool = False
    bias: bool = False
    norm: Norm | None = None
    weighs_input: bool = False
    latent: int | None = None
    own: tuple[int, int] | None = None
    hashed: int | None = None
