"""Ops and modules as implementations got them wrong: what tests/helpers/seeded_bugs.py puts into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.model.attention import GroupedQueryAttention
from minillm.model.moe import Router
from minillm.model.norm import LayerNorm
from minillm.ops import reference, routing
from minillm.ops.routing import Routing
from minillm.ops.visibility import Visibility
from minillm.spec import Router as RouterSpec

# Attention.


def tiled(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    return reference.attention(q, k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1), *rest, **options)


def seen(shift: int) -> Callable[..., Tensor]:
    """A mask that ends so many keys later, or begins so many earlier."""

    def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visibility, scale: float | None = None, *rest: Any) -> Tensor:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(shift)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)

    return attend


def coarse(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return reference.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), *rest).float()


def norm_behind_rotation(module: GroupedQueryAttention) -> None:
    def rotated(qkv: Tensor, step: Any) -> tuple[Tensor, Tensor, Tensor]:
        (cos, sin), (q, k, v) = step.rotary[module.spec.rope], module.heads(qkv)
        return module.q_norm(reference.rope(q, cos, sin)), module.k_norm(reference.rope(k, cos, sin)), v

    module._rotated = rotated  # type: ignore[method-assign]


def without_mean(module: LayerNorm) -> None:
    def forward(x: Tensor) -> Tensor:
        return reference.rms_norm(x, module.weight, module.spec.eps) + module.bias

    module.forward = forward  # type: ignore[method-assign]


# Routers.


def bias_in_weights(logits: Tensor, correction: Tensor, router: RouterSpec) -> Routing:
    scores = routing.score(logits, router) + (0.0 if correction is None else correction)
    chosen = routing.choose(scores, None, router)
    return Routing(chosen, routing.weigh(scores, chosen, router), logits)


def masked_with_zero(logits: Tensor, correction: Tensor, router: RouterSpec) -> Routing:
    if router.num_groups == 1:
        return routing.route(logits, correction, router)
    scores = routing.score(logits, router)
    choice = scores + (0.0 if correction is None else correction)
    choice = choice.masked_fill(~routing.best_groups(choice, router), 0.0)
    chosen = choice.topk(router.top_k, dim=-1).indices
    return Routing(chosen, routing.weigh(scores, chosen, router), logits)


def raw_logits(logits: Tensor, correction: Tensor | None, router: RouterSpec) -> Routing:
    right = routing.route(logits, correction, router)
    return right._replace(weights=logits.gather(-1, right.experts))


def in_bfloat16(router: Router) -> None:
    def forward(x: Tensor, tokens: Tensor | None = None) -> Routing:
        logits = F.linear(x.bfloat16(), router.weight.bfloat16()).float()
        return routing.route(logits, router.bias, router.spec)

    router.forward = forward  # type: ignore[method-assign]
