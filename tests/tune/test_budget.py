"""What the command says of memory before it loads anything, against what autograd keeps."""

from __future__ import annotations

import pytest
import torch

import minillm
from minillm.tune import budget
from minillm.tune.optimizers import Update
from tests.conftest import shared

NAMES = [("", 0.1), ("stories260K", 0.1), ("stories-phi3", 0.1), ("stories-gemma2", 0.2)]


@pytest.mark.parametrize(("name", "within"), NAMES)
def test_activations_are_about_what_is_kept(name: str, within: float) -> None:
    """The last has norms behind attention and feed-forward too, which the formula does not count."""
    path = shared(f"checkpoints/{name}") if name else None
    model = minillm.load(path, dtype="float32", device="cpu", kernels="reference").model.requires_grad_(True)
    own, seen = {each.untyped_storage().data_ptr() for each in model.parameters()}, {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.hidden(torch.randint(500, (2, 96)))
    kept = sum(nbytes for nbytes, _ in seen.values())
    assert budget.activations(model.spec, 2, 96, 4, recomputes=False) == pytest.approx(kept, rel=within)


def test_bytes_of_what_learns() -> None:
    values, bf16 = 1_000_000, torch.bfloat16
    assert budget.learning(values, torch.float32, Update()) == 12 * values
    assert budget.learning(values, bf16, Update()) == 14 * values  # with the weights' 2, the 16 that tables have
    assert budget.learning(values, bf16, Update("adamw8bit", stochastic=True)) == pytest.approx(4.03 * values, rel=1e-3)
