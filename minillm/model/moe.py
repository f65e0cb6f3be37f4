"""Mixture of experts (Shazeer et al., arXiv:1701.06538): a router picks a few experts for each token.

    y = norm(sum over the chosen e of w_e * expert_e(norm(x)))  [+ norm(shared(norm(x)))]

Most mixtures have none of these norms. In a latent one experts see W_in x, and W_out is applied to their sum.

Shapes: N tokens, E experts, k chosen per token, H hidden size, F intermediate size of an expert; P picks of experts
that are here, where other ranks have some.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm import spec
from minillm.model import held
from minillm.model.ffn import MLP, GatedMLP
from minillm.model.linear import Linear
from minillm.model.lora.adapted import adapted
from minillm.model.norm import norm
from minillm.ops import REFERENCE, Ops
from minillm.ops.ranks import ALONE
from minillm.ops.routing import Routing, score, weigh

RECORDED = 256  # tokens of a pass at most whose shapes must not depend on where they go, so that it can be recorded


class Router(nn.Module):
    """x `[N, H]` -> `Routing`. Weights, correction and arithmetic are fp32 whatever the model's dtype. With a table of
    `hashed` tokens the experts of each are those that it has."""

    FP32 = ("weight", "bias", "logit_bias", "input_scale", "expert_scale", "table")

    def __init__(self, router: spec.Router, hidden_size: int, ops: Ops = REFERENCE, hashed: int | None = None):
        super().__init__()
        self.spec = router
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(router.num_experts, hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(router.num_experts, dtype=torch.float32)) if router.bias else None
        has = router.logit_bias
        self.logit_bias = nn.Parameter(torch.zeros(router.num_experts, dtype=torch.float32)) if has else None
        self.input_scale = self.expert_scale = None
        if isinstance(router.normalize, spec.Norm):
            self.input_scale = nn.Parameter(torch.ones(hidden_size, dtype=torch.float32))
            self.expert_scale = nn.Parameter(torch.ones(router.num_experts, dtype=torch.float32))
        # Numbers of experts, in fp32 as all that a model holds is of floating point.
        self.table = nn.Parameter(torch.zeros(hashed, router.top_k, dtype=torch.float32)) if hashed else None
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Routing:
        given, changed = self.given(x.float()), adapted(self)
        logits = F.linear(given, self.weight, self.logit_bias)
        if changed is not None:
            logits = changed.added(self, "weight", given, logits)
        if self.table is not None:
            assert tokens is not None
            chosen = self.table[tokens].long()
            return self.scaled(Routing(chosen, weigh(score(logits, self.spec), chosen, self.spec), logits))
        return self.scaled(self.ops.route(logits, self.bias, self.spec))

    def check(self, name: str) -> None:
        """Raise ValueError where a table has what is no expert's number."""
        if self.table is None:
            return
        known = (self.table >= 0) & (self.table < self.spec.num_experts) & (self.table == self.table.floor())
        if not known.all():
            odd = self.table[~known][0].item()
            raise ValueError(f"{name}.table: a token goes to expert {odd:g}, and there are {self.spec.num_experts}; "
                             "download the checkpoint again")  # fmt: skip

    def scaled(self, found: Routing) -> Routing:
        """With each expert's own factor on its weights."""
        if self.expert_scale is None:
            return found
        return found._replace(weights=found.weights * self.expert_scale[found.experts])

    def given(self, x: Tensor) -> Tensor:
        """What logits are made of."""
        made = self.spec.normalize
        if not isinstance(made, spec.Norm):
            return x
        return self.ops.rms_norm(x, self.input_scale, made.eps, made.offset, made.cast) * x.shape[-1] ** -0.5


class Experts(nn.Module):
    """All experts of a layer: gate and up in one `[E, 2F, H]`, up alone where there is no gate, down in one
    `[E, H, F]`; biases one behind the other, `[E * 2F]` and `[E * H]`."""

    MULTIPLIED = ("gate_up", "down")

    def __init__(self, moe: spec.MoE, hidden_size: int, ops: Ops):
        super().__init__()
        self.spec = moe
        self.ops = ops
        self.first, end = moe.own or (0, moe.router.num_experts)
        self.count = experts = end - self.first
        inner = moe.intermediate_size
        self.parts = ("up",) if isinstance(moe.activation, spec.Ungated) else ("gate", "up")
        self.gate_up = nn.Parameter(torch.empty(experts, len(self.parts) * inner, hidden_size))
        self.down = nn.Parameter(torch.empty(experts, hidden_size, inner))
        self.gate_up_bias = nn.Parameter(torch.zeros(experts * len(self.parts) * inner)) if moe.bias else None
        self.down_bias = nn.Parameter(torch.zeros(experts * hidden_size)) if moe.bias else None
        if self.gate_up.device.type != "meta":
            nn.init.normal_(self.gate_up, std=0.02)
            nn.init.normal_(self.down, std=0.02)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        gate_up, down = (held.matrices(self, name, x.dtype) for name in ("gate_up", "down"))
        if (changed := adapted(self)) is None:
            return self._sum(x, routing, gate_up, down)
        groups = changed.groups({"gate_up": gate_up, "down": down})
        if groups[0][0] is None:
            return self._sum(x, routing, *groups[0][1])
        made = [self._sum(x[rows], routing.of(rows), *matrices) for rows, matrices in groups if rows is not None]
        return torch.cat(made)[torch.cat([rows for rows, _ in groups if rows is not None]).argsort()]

    def _sum(self, x: Tensor, routing: Routing, gate_up: Any, down: Any) -> Tensor:
        """Of each token's experts, with these matrices."""
        biases = None
        if self.gate_up_bias is not None and self.down_bias is not None:
            biases = self.gate_up_bias.view(self.count, -1), self.down_bias.view(self.count, -1)
        matrices = (gate_up, down, self.spec.activation, biases)
        if self.spec.own is not None:
            return self._of_own(x, routing, matrices)
        return self.ops.experts(x, routing.experts, routing.weights, *matrices, routing.places)

    def _of_own(self, x: Tensor, routing: Routing, matrices: Any) -> Tensor:
        """What the experts that are here add to the sum. Of few tokens a pick of another rank's becomes one more of an
        expert that the token has here, if any, with weight 0: no other matrix is read for it. Of many tokens each pick
        that is for here goes through as a token of its own."""
        picks = routing.experts - self.first
        here = (picks >= 0) & (picks < self.count)
        if len(x) <= RECORDED:
            spare = torch.where(here, picks, 0).amax(-1, keepdim=True)
            weights = torch.where(here, routing.weights, 0.0)
            return self.ops.experts(x, torch.where(here, picks, spare), weights, *matrices)
        made = x.new_zeros(*picks.shape, x.shape[-1])  # [N, k, H]
        if len(tokens := here.nonzero()[:, 0]):  # [P]
            made[here] = self.ops.experts(x[tokens], picks[here][:, None], routing.weights[here][:, None], *matrices)
        elif x.requires_grad:  # all ranks wait for each other on the way back
            return x * 0 + routing.weights.sum() * 0
        return made.sum(1, dtype=torch.float32).to(x.dtype)

    def blocks(self, name: str) -> dict[str, int]:
        """The named row blocks of a parameter, in order: "3.gate" is the gate of expert 3, "3" all of its rows."""
        experts, inner = range(self.count), self.spec.intermediate_size
        if name.startswith("down"):
            return {str(expert): self.down.shape[1] for expert in experts}
        return {f"{expert}.{part}": inner for expert in experts for part in self.parts}


class MoE(nn.Module):
    """x `[B, T, H]`, and where experts are `hashed` the tokens, int64 `[B, T]` -> `[B, T, H]`."""

    def __init__(self, moe: spec.MoE, hidden_size: int, ops: Ops):
        super().__init__()
        self.ops, self.weighs_input = ops, moe.weighs_input
        self.summed = moe.norm is not None  # what it gives is the sum over all ranks: its norms need that
        self.router, self.hashed = Router(moe.router, hidden_size, ops, moe.hashed), moe.hashed is not None
        self.experts = Experts(moe, moe.latent or hidden_size, ops)
        self.into = Linear(hidden_size, moe.latent, ops) if moe.latent else None
        self.out_of = Linear(moe.latent, hidden_size, ops) if moe.latent else None
        made: Any = MLP if isinstance(moe.shared, spec.MLP) else GatedMLP
        self.shared = made(moe.shared, hidden_size, ops) if moe.shared else None
        self.shared_gate = Linear(hidden_size, 1, ops) if moe.shared_gate else None
        self.norm, self.post_norm, self.shared_norm, self.shared_post_norm = (
            norm(moe.norm, hidden_size, ops) for _ in range(4)
        )

    def forward(self, x: Tensor, tokens_BT: Tensor | None = None) -> Tensor:
        tokens = x.flatten(0, -2)
        ids = None if tokens_BT is None else tokens_BT.flatten()
        total = self.ops.ranks.total if self.summed else ALONE.total
        given = self.norm(tokens)
        y = self.summed_up(given if self.into is None else self.into(given), self.router(tokens, ids))
        y = self.post_norm(total(y if self.out_of is None else self.out_of(y))).view_as(x)
        if self.shared is None:
            return y
        shared = self.shared_post_norm(total(self.shared(self.shared_norm(x))))
        if self.shared_gate is None:
            return y + shared
        gate = self.shared_gate(x).sigmoid()
        return y + (self.ops.ranks.alike(gate) if self.summed else gate) * shared

    def summed_up(self, x: Tensor, found: Routing) -> Tensor:
        """What a token's experts give together; x `[N, H]` -> `[N, H]`."""
        if not self.weighs_input:
            return self.experts(x, found)
        picks = zip(found.experts.split(1, -1), found.weights.to(x.dtype).split(1, -1), strict=True)
        ones = found.weights.new_ones(len(found.weights), 1)
        made = [self.experts(x * weight, Routing(expert.contiguous(), ones, found.logits)) for expert, weight in picks]
        return torch.stack(made).sum(0)
