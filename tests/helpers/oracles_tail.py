"""What transformers does its own way: classes that its table does not name, routers that say for every expert how much
it gets (Llama 4's), and weights that are multiplied behind the experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.cohere2_moe.modeling_cohere2_moe import Cohere2MoeSparseMoeBlock
from transformers.models.inkling.modeling_inkling import InklingMoE
from transformers.models.laguna.modeling_laguna import LagunaSparseMoeBlock
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLSparseMoeBlock
from transformers.models.step3p7.modeling_step3p7 import Step3p7SparseMoeBlock

BEHIND = (LagunaSparseMoeBlock, MiniMaxM3VLSparseMoeBlock, Step3p7SparseMoeBlock)
CLASS = {"mistral4": transformers.Mistral4ForCausalLM}


def scales(theirs: Any) -> dict[nn.Module, float]:
    """By what the sum of these experts is multiplied."""
    blocks = [module for module in theirs.modules() if isinstance(module, BEHIND)]
    halved = [module for module in theirs.modules() if isinstance(module, Cohere2MoeSparseMoeBlock)]
    halved = [each for each in halved if each.num_shared_experts and "av" in each.shared_expert_combination_strategy]
    learned = [module for module in theirs.modules() if isinstance(module, InklingMoE)]  # multiplied before
    return {
        **{block.experts: block.routed_scaling_factor for block in blocks},
        **{block.experts: 0.5 for block in halved},
        **{block.experts: 1 / block.gate.global_scale.item() for block in learned},
    }


def record(theirs: Any, calls: list[tuple[Tensor, Tensor]]) -> list[Any]:
    """Hooks that note the experts and weights of each call."""

    def note(router: Any, given: Any, made: tuple[Tensor, Tensor]) -> None:
        best = made[1].topk(router.top_k, dim=1).indices
        calls.append((best, made[0].gather(1, best)))

    return [module.register_forward_hook(note) for module in found(theirs)]


def play(theirs: Any, calls: Iterator[tuple[Tensor, Tensor]]) -> list[Any]:
    """Hooks that have every call choose as recorded."""

    def choose(router: Any, given: Any, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        experts, weights = next(calls)
        return torch.zeros_like(made[0]).scatter_(1, experts, weights.to(made[0].dtype)), made[1]

    return [module.register_forward_hook(choose) for module in found(theirs)]


def found(theirs: Any) -> list[nn.Module]:
    return [module for module in theirs.modules() if isinstance(module, Llama4Router)]
