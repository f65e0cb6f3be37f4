"""An adapter beside a base that stays quantised: gradients are those of the dequantised base, bit for bit, and what is
kept for the way back is less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import minillm
from minillm.adapters.attach import attach
from minillm.adapters.config import ALL, AdapterConfig
from minillm.model import held
from minillm.model.decoder import Decoder
from tests.conftest import SHARED, shared

ON_CPU: dict[str, Any] = {"dtype": "float32", "device": "cpu", "kernels": "reference"}
# What tools wrote, but for one whose file is not read; and those of them whose matrices are plain in memory.
UNREAD = "hqq/w4-g64"
STORED = sorted(
    name for path in SHARED.glob("quant/*/*") if (name := f"{path.parent.name}/{path.name}") != UNREAD
    and path.is_dir() and path.parent.name != "base"
)  # fmt: skip
PLAIN = ("gguf/stories260K-BF16", "gguf/stories260K-F16", "torchao/float8-wo")
# A number is a product of three here: as plain numbers it was rounded after another two of them.
TWO_ROUNDINGS, ROUNDED = ("bitsandbytes/int8", "compressed-tensors/nvfp4"), 2e-5  # measured: 1.2e-5

TOKENS = torch.randint(0, 500, (2, 48), generator=torch.Generator().manual_seed(0))


def of_logits(model: Decoder) -> Tensor:
    """The loss by its definition: `Decoder.loss` adds up in another order beside a head that is quantised."""
    return F.cross_entropy(model(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


def kept_bytes(model: Decoder, loss_of: Callable[[Decoder], Tensor]) -> int:
    """Of storages that autograd keeps until the way back, but for parameters."""
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    seen: dict[int, tuple[int, Tensor]] = {}

    def pack(x: Tensor) -> Tensor:
        at = x.untyped_storage().data_ptr()
        if at not in own:
            seen[at] = x.untyped_storage().nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = loss_of(model)
    found = sum(size for size, _ in seen.values())
    loss.backward()
    return found


def gradients(llm: minillm.LLM, loss_of: Callable[[Decoder], Tensor] = of_logits) -> tuple[int, dict[str, Tensor]]:
    """What is kept, and the gradients of an adapter of random values."""
    adapter = attach(llm, AdapterConfig(r=4, lora_alpha=8, target_modules=ALL))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in adapter.named().values():
            each.copy_(torch.randn(each.shape, generator=draw) * 0.05)
    kept = kept_bytes(llm.model, loss_of)
    return kept, {name: each.grad for name, each in adapter.named().items() if each.grad is not None}


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_gradients_are_those_of_the_dequantised_base(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**ON_CPU, "quantize": scheme}
    kept, found = gradients(minillm.load(**options))
    plain = minillm.load(**options)
    with monkeypatch.context() as patch:
        patch.setattr(held, "differentiable", lambda x: False)
        more, wanted = gradients(plain)
    assert found.keys() == wanted.keys()
    assert len(found) == 56  # A and B of seven matrices in four layers
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    assert kept < 0.75 * more  # every dequantised matrix would be kept


@pytest.mark.parametrize("name", [each for each in STORED if each not in PLAIN])
def test_every_form_is_learnt_beside_as_it_lies(name: str) -> None:
    """Checkpoints of the real tools: what an adapter learns beside matrices that stay as they are stored is what it
    learns beside the same matrices as numbers, and no more is kept for the way back than beside these."""
    folder = shared(f"quant/{name}")
    lies, made = (minillm.load(folder, **ON_CPU, keep_quantized=keep) for keep in (True, False))
    assert any(held.held_in(module) for module in lies.model.modules())
    weights = [sum(each.nbytes for each in llm.model.parameters()) for llm in (lies, made)]
    assert weights[0] < 0.6 * weights[1]
    (kept, found), (more, wanted) = gradients(lies), gradients(made)
    assert kept <= more
    assert found.keys() == wanted.keys()
    limit = ROUNDED if name in TWO_ROUNDINGS else 0.0
    for key, each in wanted.items():
        assert each.any(), key
        assert (found[key] - each).abs().max() <= limit * each.abs().max(), key


def test_a_quantised_head_is_not_kept_either() -> None:
    """`Decoder.loss`, which makes the logits again on the way back: beside a plain head their gradient is at hand."""
    folder = shared("quant/gguf/story-qwen-256-Q6_K")
    lies, made = (minillm.load(folder, **ON_CPU, keep_quantized=keep) for keep in (True, False))
    assert held.held_in(lies.model.head or lies.model.embedding)
    (kept, found), (more, wanted) = (gradients(llm, lambda model: model.loss(TOKENS)) for llm in (lies, made))
    assert kept <= more + TOKENS[:, 1:].nbytes  # the targets
    worst = max(float((found[key] - each).abs().max() / each.abs().max()) for key, each in wanted.items())
    assert worst < 5e-6


@pytest.mark.parametrize("name", ["gptq/b4-g64-sym", "gguf/zoo-llama-256", "compressed-tensors/fp8-block"])
def test_large_matrices_are_dequantised_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some rows each: what is added up in another order rounds otherwise, and nothing else."""
    whole, pieces = (minillm.load(shared(f"quant/{name}"), **ON_CPU) for _ in range(2))
    _, wanted = gradients(whole)
    monkeypatch.setattr(held, "PIECE", 5_000)
    _, found = gradients(pieces)
    worst = max(float((found[key] - each).abs().max() / each.abs().max()) for key, each in wanted.items())
    assert 0 < worst < 1e-5  # measured: 2.7e-6 and 6.5e-6 on two machines


def test_there_are_forms_of_all_kinds() -> None:
    shared("quant")
    assert len(set(STORED) - {*PLAIN}) >= 33
    assert {each.split("/")[0] for each in STORED} >= {"awq", "bitsandbytes", "gguf", "gptq", "mlx", "modelopt"}


def test_layers_computed_again_give_the_same_gradients_of_a_quantised_base() -> None:
    options = {**ON_CPU, "quantize": "int4"}
    kept, found = gradients(minillm.load(**options))
    llm = minillm.load(**options)
    llm.model.recomputes = True
    less, again = gradients(llm)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert less < kept / 4


@pytest.mark.parametrize("name", ["stories-mixtral", "stories-deepseek-v3", "stories-qwen3-moe"])
def test_experts_may_be_quantised_too(name: str) -> None:
    """int4 experts are dequantised again as well: bit for bit what a base learns whose matrices are these numbers."""
    llm, plain = (minillm.load(shared(f"checkpoints/{name}"), **ON_CPU, quantize=each) for each in ("int4", None))
    owners = dict(plain.model.named_modules())
    with torch.no_grad():
        for path, module in llm.model.named_modules():
            for leaf in held.held_in(module):
                getattr(owners[path], leaf).copy_(held.matrix(module, leaf, torch.float32))
    (kept, found), (more, wanted) = gradients(llm), gradients(plain)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert kept <= more
