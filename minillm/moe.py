"""Mixture of experts (Shazeer et al., arXiv:1701.06538): a router picks a few experts for each token.

    y = sum over the chosen e of w_e * expert_e(x)  [+ shared(x)]

Shapes: N tokens, E experts, k chosen per token, H hidden size, F intermediate size of an expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm import grouped, quantised, spec
from minillm.ffn import GatedMLP
from minillm.linear import Linear
from minillm.ops import Ops


class Routing(NamedTuple):
    """Where the tokens of one layer go."""

    experts: Tensor  # int64 [N, k]
    weights: Tensor  # fp32 [N, k]
    logits: Tensor  # fp32 [N, E], before any score


class Router(nn.Module):
    """x `[N, H]` -> `Routing`. Weights, correction and arithmetic are fp32 whatever the model's dtype: a rounded score
    could pick another expert."""

    def __init__(self, router: spec.Router, hidden_size: int):
        super().__init__()
        self.spec = router
        self.weight = nn.Parameter(torch.empty(router.num_experts, hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(router.num_experts, dtype=torch.float32)) if router.bias else None
        has = router.logit_bias
        self.logit_bias = nn.Parameter(torch.zeros(router.num_experts, dtype=torch.float32)) if has else None
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Routing:
        logits = F.linear(x.float(), self.weight, self.logit_bias)
        scores = score(logits, self.spec)
        chosen = choose(scores, self.bias, self.spec)
        return Routing(chosen, weigh(scores, chosen, self.spec), logits)


def score(logits: Tensor, router: spec.Router) -> Tensor:
    """fp32 `[N, E]` -> `[N, E]`: what experts are chosen by, and their weights made from."""
    if router.standardize:
        logits = (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-5)
    if router.score == "softmax":
        return logits.softmax(-1)
    return logits.sigmoid() if router.score == "sigmoid" else logits


def choose(scores: Tensor, bias: Tensor | None, router: spec.Router) -> Tensor:
    """The chosen experts of each token, best first; scores `[N, E]`, correction `[E]` -> int64 `[N, k]`."""
    scores = scores if bias is None else scores + bias
    if router.num_groups > 1:
        scores = scores.masked_fill(~best_groups(scores, router), float("-inf"))
    return scores.topk(router.top_k, dim=-1).indices


def weigh(scores: Tensor, chosen: Tensor, router: spec.Router) -> Tensor:
    """The weights of the chosen experts; scores `[N, E]`, chosen `[N, k]` -> fp32 `[N, k]`."""
    picked = scores.gather(-1, chosen)
    weights = sparsemixer(scores, chosen, router.jitter) if router.score == "sparsemixer" else picked
    if router.score == "softmax_chosen":
        weights = weights.softmax(-1)
    if router.renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights if router.scale == 1 else weights * router.scale


def best_groups(choice: Tensor, router: spec.Router) -> Tensor:
    """True for the experts of each token's `top_groups` best groups; bool `[N, E]` (DeepSeek-V2, arXiv:2405.04434)."""
    grouped = choice.unflatten(-1, (router.num_groups, -1))  # [N, groups, E / groups]
    best = grouped.topk(2 if router.group_score == "top2_sum" else 1, dim=-1).values.sum(-1)
    allowed = torch.zeros_like(best, dtype=torch.bool)
    allowed.scatter_(-1, best.topk(router.top_groups, dim=-1).indices, True)
    return allowed.unsqueeze(-1).expand_as(grouped).flatten(-2)


def sparsemixer(logits: Tensor, chosen: Tensor, jitter: float) -> Tensor:
    """SparseMixer at inference (arXiv:2409.12136): each pick has its share of a softmax over the experts not picked
    before it whose logit l has (best - l) / max(|l|, best) <= 2 jitter, best being the pick's own.

    Shapes as in `weigh`; the weights do not sum to 1."""
    left, weights = logits, []
    for pick in chosen.split(1, dim=-1):
        best = logits.gather(-1, pick)
        far = (best - logits) / logits.abs().clamp(min=best) > 2 * jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(-1, pick))
        left = left.scatter(-1, pick, float("-inf"))
    return torch.cat(weights, -1)


class Experts(nn.Module):
    """All experts of a layer: gate and up in one `[E, 2F, H]`, down in one `[E, H, F]`; biases one behind the other,
    `[E * 2F]` and `[E * H]`."""

    HOLDABLE = ("gate_up", "down")

    def __init__(self, moe: spec.MoE, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = moe
        self.ops = ops
        experts, inner = moe.router.num_experts, moe.intermediate_size
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * inner, hidden_size))
        self.down = nn.Parameter(torch.empty(experts, hidden_size, inner))
        self.gate_up_bias = nn.Parameter(torch.zeros(experts * 2 * inner)) if moe.bias else None
        self.down_bias = nn.Parameter(torch.zeros(experts * hidden_size)) if moe.bias else None
        if self.gate_up.device.type != "meta":
            nn.init.normal_(self.gate_up, std=0.02)
            nn.init.normal_(self.down, std=0.02)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        gate_up, down = (quantised.matrices(self, name, x.dtype) for name in ("gate_up", "down"))
        biases = None
        if self.gate_up_bias is not None and self.down_bias is not None:
            count = self.spec.router.num_experts
            biases = self.gate_up_bias.view(count, -1), self.down_bias.view(count, -1)
        return self.ops.experts(x, routing.experts, routing.weights, gate_up, down, self.spec.activation, biases)

    @torch.no_grad()
    def pack(self) -> None:
        """Rearrange the matrices in place for the grouped path: for inference on a CPU."""
        for name in ("gate_up", "down"):
            if not quantised.is_held(self, name):
                setattr(self, name, nn.Parameter(grouped.to_input_major(getattr(self, name)), requires_grad=False))

    def blocks(self, name: str) -> dict[str, int]:
        """The named row blocks of a parameter, in order: "3.gate" is the gate of expert 3, "3" all of its rows."""
        experts, inner = range(self.spec.router.num_experts), self.spec.intermediate_size
        if name.startswith("down"):
            return {str(expert): self.down.shape[1] for expert in experts}
        return {f"{expert}.{part}": inner for expert in experts for part in ("gate", "up")}


class MoE(nn.Module):
    """x `[B, T, H]` -> `[B, T, H]`."""

    def __init__(self, moe: spec.MoE, hidden_size: int, ops: Ops):
        super().__init__()
        self.router = Router(moe.router, hidden_size)
        self.experts = Experts(moe, hidden_size, ops)
        self.shared = GatedMLP(moe.shared, hidden_size, ops) if moe.shared else None
        self.shared_gate = Linear(hidden_size, 1) if moe.shared_gate else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        y = self.experts(tokens, self.router(tokens)).view_as(x)
        if self.shared is None:
            return y
        shared = self.shared(x)
        return y + (shared if self.shared_gate is None else self.shared_gate(x).sigmoid() * shared)
