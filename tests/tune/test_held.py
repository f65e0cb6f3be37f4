"""An adapter beside a base that stays quantised: gradients are those of the dequantised base, bit for bit, and what is
kept for the way back is less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import minillm
from minillm.adapters.attach import attach
from minillm.adapters.config import ALL, AdapterConfig
from minillm.model import held
from minillm.model.decoder import Decoder
from tests.conftest import shared

TOKENS = torch.randint(0, 500, (2, 48), generator=torch.Generator().manual_seed(0))


def kept_bytes(model: Decoder, backward: Callable[[Tensor], None]) -> int:
    """Of storages that autograd keeps until the way back, but for parameters."""
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    seen: dict[int, tuple[int, Tensor]] = {}

    def pack(x: Tensor) -> Tensor:
        at = x.untyped_storage().data_ptr()
        if at not in own:
            seen[at] = x.untyped_storage().nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model.loss(TOKENS)
    found = sum(size for size, _ in seen.values())
    backward(loss)
    return found


def gradients(llm: minillm.LLM, plainly: bool = False) -> tuple[int, dict[str, Tensor]]:
    """What is kept, and the gradients of an adapter of random values."""
    adapter = attach(llm, AdapterConfig(r=4, lora_alpha=8, target_modules=ALL))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in adapter.named().values():
            each.copy_(torch.randn(each.shape, generator=draw) * 0.05)
    kept = kept_bytes(llm.model, lambda loss: loss.backward())
    return kept, {name: each.grad for name, each in adapter.named().items() if each.grad is not None}


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_gradients_are_those_of_the_dequantised_base(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"dtype": "float32", "device": "cpu", "kernels": "reference", "quantize": scheme}
    kept, found = gradients(minillm.load(**options))
    plain = minillm.load(**options)
    with monkeypatch.context() as patch:
        patch.setattr(held, "differentiable", lambda x: False)
        more, wanted = gradients(plain)
    assert found.keys() == wanted.keys()
    assert len(found) == 56  # A and B of seven matrices in four layers
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    assert kept < 0.75 * more  # every dequantised matrix would be kept


def test_a_quantised_base_takes_much_less_than_a_plain_one() -> None:
    options = {"dtype": "float32", "device": "cpu", "kernels": "reference"}
    weights, kept = {}, {}
    for scheme in (None, "int4"):
        llm = minillm.load(**options, quantize=scheme)
        weights[scheme] = sum(each.nbytes for each in llm.model.parameters())
        kept[scheme], _ = gradients(llm)
    assert weights["int4"] < 0.6 * weights[None]
    assert kept["int4"] <= 1.05 * kept[None]  # what is kept of activations is the same


def test_layers_computed_again_give_the_same_gradients_of_a_quantised_base() -> None:
    options = {"dtype": "float32", "device": "cpu", "kernels": "reference", "quantize": "int4"}
    kept, found = gradients(minillm.load(**options))
    llm = minillm.load(**options)
    llm.model.recomputes = True
    less, again = gradients(llm)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert less < kept / 4


@pytest.mark.parametrize("name", ["stories-mixtral", "stories-deepseek-v3"])
def test_experts_may_be_quantised_too(name: str) -> None:
    path: Path = shared(f"checkpoints/{name}")
    llm = minillm.load(path, dtype="float32", device="cpu", kernels="reference", quantize="int8")
    _, found = gradients(llm)
    assert all(each.isfinite().all() and each.any() for each in found.values())
