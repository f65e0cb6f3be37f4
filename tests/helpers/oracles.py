"""The other side of parity: transformers' models, what they route, and the families that transformers lacks.

A router's choice is a step: two correct implementations that differ in the last bit may send a token to different
experts. `recorded` notes what transformers chose, `played` makes the other side choose the same and counts where it
would have chosen differently.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

from minillm.model.moe import Router
from minillm.ops.routing import Routing
from tests.helpers import oracles_hybrid, oracles_indexed, oracles_plamo, oracles_renamed, oracles_tail, oracles_wrapped

# A model_type that transformers has under another name.
SAME_AS = {"kimi_k2": "deepseek_v3", "tanuki": "mixtral"}
OWN = {"deepseek", *oracles_plamo.BUILD, *oracles_renamed.CLASS}  # it has none
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}


def build(family: str, values: dict[str, Any]) -> Any:
    """A fresh model of a family, in the plainest of transformers' implementations."""
    values = copy.deepcopy(values)  # into whose parts transformers' configs write
    if family == "deepseek":
        return with_experts(transformers.LlamaConfig(**values))
    if family in oracles_plamo.BUILD:
        return oracles_plamo.BUILD[family](values)
    for others, families in ((oracles_wrapped, oracles_wrapped.WRAPPED), (oracles_renamed, oracles_renamed.CLASS)):
        if family in families:
            return others.build(family, values, **EAGER)
    config = transformers.AutoConfig.for_model(SAME_AS.get(family, family), **values)
    if family in oracles_tail.CLASS:
        return oracles_tail.CLASS[family]._from_config(config, **EAGER)
    model = transformers.AutoModelForCausalLM.from_config(config, **EAGER)
    return standardised(model) if family == "tanuki" else model


def save(model: Any, folder: Path, family: str) -> None:
    """The checkpoint in the published layout."""
    if family == "deepseek":
        write_with_experts(model, folder)
    elif family in oracles_plamo.WRITE:
        oracles_plamo.WRITE[family](model, folder)
    elif family in oracles_renamed.CLASS:
        oracles_renamed.save(model, folder, family)
    else:
        model.save_pretrained(folder)
    if family in oracles_wrapped.WRAPPED:
        oracles_wrapped.publish(folder)
    if family in oracles_hybrid.PUBLISH:
        oracles_hybrid.PUBLISH[family](model, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": family}))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The same folder in the plainest of transformers' implementations."""
    values = json.loads((folder / "config.json").read_text())
    family = values["model_type"]
    if family == "deepseek":
        model = with_experts(transformers.LlamaConfig(**values))
        model.load_state_dict(load_file(folder / "oracle/state.safetensors"))
        return model.to(dtype).eval()
    if family in oracles_plamo.BUILD:
        return oracles_plamo.load(folder, family).to(dtype).eval()
    if family in oracles_wrapped.WRAPPED:
        return oracles_wrapped.load(folder, dtype=dtype, **EAGER)
    if family in oracles_renamed.CLASS:
        return oracles_renamed.load(folder, dtype=dtype, **EAGER)
    if family in oracles_tail.CLASS:
        return oracles_tail.CLASS[family].from_pretrained(folder, dtype=dtype, **EAGER).eval()
    if family in SAME_AS:
        values["model_type"] = SAME_AS[family]
        config = transformers.AutoConfig.for_model(**values)
        kind = transformers.AutoModelForCausalLM._model_mapping[type(config)]
        model = kind.from_pretrained(folder, config=config, dtype=dtype, **EAGER)
        return (standardised(model) if family == "tanuki" else model).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **EAGER).eval()


def standardised(model: Any) -> Any:
    """Tanuki-8x8B: a plain Mixtral but for l -> (l - mean) / (std + 1e-5), std unbiased, over a token's experts."""

    def gate(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = nn.functional.linear(x.reshape(-1, x.shape[-1]), self.weight)
        logits = (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-5)
        weights, experts = torch.topk(torch.softmax(logits.float(), dim=-1), self.top_k)
        return logits, weights / weights.sum(dim=-1, keepdim=True), experts

    for layer in model.model.layers:
        layer.mlp.gate.forward = gate.__get__(layer.mlp.gate)
    return model


def with_experts(config: Any) -> Any:
    """DeepSeek-MoE-16B: a Llama whose later layers have DeepSeek-V2's experts, renormalised if the config says so."""
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config)
    keys = ("hidden_size", "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok")
    moe = transformers.DeepseekV2Config(**{key: getattr(config, key) for key in keys}, num_attention_heads=1)
    moe._experts_implementation = "eager"
    for layer in model.model.layers[config.first_k_dense_replace :]:
        layer.mlp = DeepseekV2Moe(moe)
        if config.norm_topk_prob:
            layer.mlp.gate.register_forward_hook(lambda m, x, out: (out[0], out[1] / out[1].sum(-1, True), out[2]))
    return model


def write_with_experts(model: Any, folder: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (folder / "oracle").mkdir()
    save_file(state, folder / "oracle/state.safetensors")
    published = {}
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(tensor):
                stem = f"{name.removesuffix('gate_up_proj')}{e}"
                published |= dict(
                    zip((f"{stem}.gate_proj.weight", f"{stem}.up_proj.weight"), both.chunk(2), strict=True)
                )
        elif name.endswith("experts.down_proj"):
            stem = name.removesuffix("down_proj")
            published |= {f"{stem}{e}.down_proj.weight": each for e, each in enumerate(tensor)}
        else:
            published[name] = tensor
    save_file({name: tensor.clone() for name, tensor in published.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False))


@dataclass
class Routes:
    """(experts, weights) of every call of every router in order, and how the one who follows would have chosen."""

    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    choices: list[Tensor] = field(default_factory=list)  # of every call of every indexer
    tokens: int = 0
    other_choices: int = 0
    weight_error: float = 0.0  # over tokens of the same choice

    def cut(self, at: int, rows: int) -> tuple[Routes, Routes]:
        """Those of the first `at` tokens of each row, and those of the others."""
        parts = Routes(), Routes()
        for call in self.calls:
            split = [each.unflatten(0, (rows, -1)).tensor_split([at], dim=1) for each in call]
            for part, experts, weights in zip(parts, *split, strict=True):
                part.calls.append((experts.flatten(0, 1), weights.flatten(0, 1)))
        return parts

    def of_row(self, row: int, rows: int, pieces: list[int]) -> Routes:
        """Those of one of the rows, as if it had come alone and in pieces of so many tokens."""
        split = [[each.unflatten(0, (rows, -1))[row].split(pieces) for each in call] for call in self.calls]
        choices = [call[row : row + 1].split(pieces, dim=-2) for call in self.choices]
        numbers = range(len(pieces))
        return Routes(
            [(experts[i], weights[i]) for i in numbers for experts, weights in split],
            [each[i] for i in numbers for each in choices],
        )

    def compare(self, own: Routing, experts: Tensor, weights: Tensor) -> None:
        mine, theirs = own.experts.sort(-1), experts.sort(-1)
        same = (mine.values == theirs.values).all(-1)
        self.tokens += len(same)
        self.other_choices += int((~same).sum())
        error = (own.weights.gather(-1, mine.indices) - weights.float().gather(-1, theirs.indices)).abs()[same]
        self.weight_error = max(self.weight_error, error.max().item() if len(error) else 0.0)


def _experts(theirs: Any) -> list[nn.Module]:
    if oracles_tail.found(theirs):
        return []
    return [module for name, module in theirs.named_modules() if name.endswith(".experts")]


@contextlib.contextmanager
def recorded(theirs: Any) -> Iterator[Routes]:
    """What a transformers model routes meanwhile."""
    routes = Routes()
    scales = oracles_tail.scales(theirs)

    def note(module: nn.Module, given: Any) -> None:
        routes.calls.append((given[1], given[2] * scales.get(module, 1)))

    hooks = [module.register_forward_pre_hook(note) for module in _experts(theirs)]
    hooks += oracles_tail.record(theirs, routes.calls) + oracles_indexed.record(theirs, routes.choices)
    try:
        yield routes
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def played(model: Any, routes: Routes) -> Iterator[Routes]:
    """Either side routes as recorded, from the beginning."""
    calls, scales = iter(routes.calls), oracles_tail.scales(model)

    def ours(module: nn.Module, given: Any, own: Routing) -> Routing:
        experts, weights = next(calls)
        routes.compare(own, experts, weights)
        return Routing(experts, weights.float(), own.logits)

    def theirs(module: nn.Module, given: Any) -> Any:
        experts, weights = next(calls)
        return given[0], experts, (weights / scales.get(module, 1)).to(given[2].dtype)

    routers = [module for module in model.modules() if isinstance(module, Router)]
    hooks = [router.register_forward_hook(ours) for router in routers]
    hooks += [module.register_forward_pre_hook(theirs) for module in _experts(model)] if not routers else []
    hooks += oracles_tail.play(model, calls)
    try:
        with oracles_indexed.played(model, routes.choices):
            yield routes
        assert next(calls, None) is None, "more was recorded than played"
    finally:
        for hook in hooks:
            hook.remove()
