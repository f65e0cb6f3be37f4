"""Adapters against PEFT: its folders read here, ours read there, the same logits, loss and gradients.

The largest difference seen of a gradient was 4.1e-6 of the largest value in its tensor, of logits of size about 4
5.0e-6, over all rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import minillm
from minillm.adapters.adapter import Adapter
from minillm.adapters.attach import attach
from minillm.adapters.config import AdapterConfig
from minillm.adapters.read import read
from minillm.llm import LLM
from tests.helpers import adapters, tiny

RELATIVE, LOGITS = 1e-5, 2e-5
LINEAR: dict[str, Any] = {"target_modules": "all-linear"}
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LINEAR),
    "qwen2": ("qwen2", {"target_modules": ["q_proj", "v_proj", "gate_proj"]}),
    "qwen3": ("qwen3", LINEAR),
    "gemma": ("gemma", LINEAR),
    "phi3": ("phi3", LINEAR),
    "gpt_neox": ("gpt_neox", LINEAR),
    "mixtral": ("mixtral", LINEAR),
    "qwen3_moe": ("qwen3_moe", LINEAR),
    "deepseek_v3": ("deepseek_v3", LINEAR),
    "gpt_oss": ("gpt_oss", {"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "rank-stabilised": ("qwen3", {**LINEAR, "use_rslora": True}),
    "dora": ("qwen2", {**LINEAR, "use_dora": True}),
    "dora-phi3": ("phi3", {**LINEAR, "use_dora": True}),
    "dora-layout": ("gpt_neox", {**LINEAR, "use_dora": True}),
    "patterns": (
        "llama",
        {
            **LINEAR,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
            "alpha_pattern": {"v_proj": 5, r".*\.0\.mlp\.down_proj": 3},
        },
    ),
    "one layer": ("llama", {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1]}),
    "expression": ("llama", {"target_modules": r".*layers\.[02]\..*(q|gate)_proj", "exclude_modules": ["o_proj"]}),
    "bias of B": ("llama", {**LINEAR, "lora_bias": True}),
    "biases of adapted": ("llama-biases", {"target_modules": ["q_proj", "down_proj"], "bias": "lora_only"}),
    "all biases": ("gpt_neox", {"target_modules": ["dense"], "bias": "all"}),
    "bias and dora": ("llama-biases", {**LINEAR, "use_dora": True, "bias": "lora_only"}),
    "embedding and head": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "tied embedding": ("qwen2-tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied head": ("qwen2-tied", {"target_modules": ["q_proj", "lm_head"]}),
    "scaled embedding": ("gemma", {"target_modules": ["embed_tokens"]}),
    "saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "saved norms": ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["norm", "q_norm"]}),
    "saved tied head": ("qwen2-tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "gate_up of experts": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": BOTH[:1]}),
    "down of experts": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": BOTH[1:]}),
    "router": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}),
}


class Pair:
    """A model with an adapter, PEFT's and ours."""

    def __init__(self, folder: Path, row: str, options: dict[str, Any]):
        self.folder = folder
        self.theirs, self.adapter = adapters.made(folder, row, **options)
        self.llm = minillm.load(folder, device="cpu", kernels="reference")
        self.tokens = tiny.tokens(self.llm.spec.vocab_size, 2, 20)
        self.before = self.logits()
        self.ours = read(self.llm, self.adapter)

    @torch.no_grad()
    def logits(self) -> Tensor:
        return self.llm.model(self.tokens)


@pytest.fixture(scope="module", params=list(OPTIONS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("peft"), *OPTIONS[request.param])


def test_logits(pair: Pair) -> None:
    expected = tiny.logits(pair.theirs, pair.tokens)
    assert (pair.logits() - expected).abs().max() <= LOGITS
    assert (pair.before - expected).abs().max() > 0.1  # the adapter does something


def test_switched_off(pair: Pair) -> None:
    with pair.ours.disabled():
        assert torch.equal(pair.logits(), pair.before)
    assert not torch.equal(pair.logits(), pair.before)


def test_loss_and_gradients(pair: Pair) -> None:
    for each in pair.ours.parameters():
        each.requires_grad_(True)
    expected = pair.theirs(input_ids=pair.tokens, labels=pair.tokens).loss
    expected.backward()
    loss = pair.llm.model.loss(pair.tokens)
    loss.backward()
    assert abs(loss - expected) / expected <= 1e-6
    theirs = adapters.gradients(pair.theirs)
    ours = gradients(pair.ours)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= RELATIVE * gradient.abs().max(), name
    for each in pair.ours.parameters():
        each.requires_grad_(False)


def gradients(adapter: Adapter) -> dict[str, Tensor]:
    """By the names in the file, and as the file has them."""
    found = {}
    for name, filed in adapter.filed.items():
        assert all(each.grad is not None for each in filed.parameters), name
        found[name] = filed.made(*(each.grad for each in filed.parameters))
    return found


def test_written(pair: Pair) -> None:
    """What we write PEFT reads; every tensor is the one it wrote."""
    again = pair.folder / "again"
    pair.ours.write(again, str(pair.folder))
    ours, theirs = (load_file(each / "adapter_model.safetensors") for each in (again, pair.adapter))
    assert set(ours) == {name for name in theirs if not name.endswith("base_layer.weight")}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    loaded = peft.PeftModel.from_pretrained(tiny.reference(pair.folder), again).eval()
    assert torch.equal(tiny.logits(loaded, pair.tokens), tiny.logits(pair.theirs.eval(), pair.tokens))


def attached(folder: Path, row: str, **options: Any) -> tuple[LLM, Adapter]:
    tiny.save(folder, *tiny.ROWS[row])
    llm = minillm.load(folder, device="cpu", kernels="reference")
    adapter = attach(llm, AdapterConfig(r=4, lora_alpha=10, **options), seed=1)
    adapters.randomise_ours(adapter)
    return llm, adapter


@pytest.mark.parametrize("name", list(OPTIONS))
def test_made_here(name: str, tmp_path: Path) -> None:
    """An adapter that was begun here has the tensors of PEFT's, and PEFT reads it."""
    row, options = OPTIONS[name]
    if name in ("mixtral", "qwen3_moe", "deepseek_v3"):
        options = {"target_modules": ["q_proj", "o_proj"], "target_parameters": BOTH}
    llm, adapter = attached(tmp_path, row, **options)
    adapter.write(tmp_path / "made", str(tmp_path))
    tokens = tiny.tokens(llm.spec.vocab_size, 2, 20)
    loaded = peft.PeftModel.from_pretrained(tiny.reference(tmp_path), tmp_path / "made").eval()
    asked = peft.LoraConfig(r=4, lora_alpha=10, task_type="CAUSAL_LM", **options)
    wanted = peft.get_peft_model_state_dict(peft.get_peft_model(tiny.reference(tmp_path), asked))
    assert {name for name in wanted if "base_layer.weight" not in name} == {
        f"base_model.model.{n}" for n in adapter.filed
    }
    with torch.no_grad():
        assert (llm.model(tokens) - tiny.logits(loaded, tokens)).abs().max() <= LOGITS


def test_begins_as_nothing(tmp_path: Path) -> None:
    """B is zero, so nothing changes; the same seed begins the same; A is as wide as PEFT's; nothing else is trained."""
    tiny.save(tmp_path, *tiny.ROWS["llama"])
    made = []
    for dora in (False, True):
        llm = minillm.load(tmp_path, device="cpu", kernels="reference")
        tokens = tiny.tokens(llm.spec.vocab_size, 1, 20)
        before = llm.model(tokens)
        made.append(attach(llm, AdapterConfig(r=4, target_modules="all-linear", use_dora=dora), seed=3))
        assert (llm.model(tokens) - before).abs().max() <= (LOGITS if dora else 0)
        assert not any(each.requires_grad for each in llm.model.parameters())
    first, second = made
    assert all(torch.equal(value, second.named()[name]) for name, value in first.named().items())
    a = torch.cat([value.flatten() for name, value in first.named().items() if "lora_A" in name and "down" not in name])
    assert abs(a.abs().max() - 48**-0.5) < 1e-3
    assert abs(a.std() - (48 * 3) ** -0.5) < 2e-3
