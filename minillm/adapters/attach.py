"""A new adapter for training, as PEFT begins one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from minillm.adapters.adapter import Adapter
from minillm.adapters.build import HEAD, Base, Build
from minillm.adapters.config import ALL, AdapterConfig
from minillm.llm import LLM
from minillm.model.embedding import Embedding
from minillm.model.linear import Linear
from minillm.model.lora import deltas
from minillm.model.mla import LatentAttention
from minillm.model.moe import Router
from minillm.weights import adapter as names
from minillm.weights.rules import Destination


def attach(llm: Base | LLM, config: AdapterConfig, seed: int = 0, name: str = "default") -> Adapter:
    """A new adapter on a model, to be trained: as PEFT begins, A is random and B zero, so that nothing changes yet.
    The model's own parameters are no longer trained. Raises ValueError for targets that are none."""
    llm.model.requires_grad_(False)
    build, draw = Build(llm, config, name, trained=True), torch.Generator().manual_seed(seed)
    chosen = dict(_chosen(build))
    if not chosen and not config.modules_to_save:
        raise ValueError(f"no module is one of target_modules {config.target_modules!r}; give names such as q_proj")
    for stem, to in chosen.items():
        _begin(build, stem, to, draw)
    for tensor, to in build.names.matrices().items():
        owner, _, leaf = tensor.rpartition(".")
        trained = config.bias == "all" or (config.bias == "lora_only" and owner in chosen)
        if config.saves(owner) or (leaf == "bias" and trained):
            build.whole(tensor, to, _current(build, to))
    adapter = build.finish()
    adapter.on()
    return adapter


def _chosen(build: Build) -> Iterator[tuple[str, Destination]]:
    """The modules, or parameters of experts, that the config means. All linear ones are all but head and routers."""
    config = build.config
    kinds = (Linear, LatentAttention) if str(config.target_modules).lower() == ALL else (
        Linear, LatentAttention, Embedding, Router)  # fmt: skip
    for tensor, to in build.names.matrices().items():
        stem, _, leaf = tensor.rpartition(".")
        owner = to.parameter.rpartition(".")[0]
        module = Linear if to.parameter == HEAD else type(build.model.get_submodule(owner))
        two = leaf == "weight" and len(to.shape) == 2 and issubclass(module, kinds)
        if two and (config.targets(stem, to.parameter == HEAD) or config.targets_parameter(tensor)):
            yield stem, to
    for name, to in build.names.fused().items():
        if config.targets_parameter(name) or _all_experts(build, name, to):
            yield name, to


def _all_experts(build: Build, name: str, to: Destination) -> bool:
    """Whether target_modules means every matrix that a parameter of experts holds."""
    owner, held = name.rpartition(".")[0], build.names.matrices().items()
    stems = [tensor.removesuffix(".weight") for tensor, at in held if at.parameter == to.parameter]
    found = [build.config.targets(stem) for stem in stems if stem != name]
    if any(found) and not all(found):
        raise ValueError(f"target_modules means only some of the matrices in {owner}; name all, or target_parameters")
    return bool(found) and all(found)


def _begin(build: Build, stem: str, to: Destination, draw: torch.Generator) -> None:
    config, rank = build.config, build.config.rank(stem)
    if to.whole is not None and len(to.whole) == 3:
        if config.use_dora or config.lora_bias or config.lora_dropout:
            raise ValueError(f"{stem}: experts have no use_dora, lora_bias or lora_dropout; switch them off")
        count, outputs, inputs = to.whole
        a, b = (_uniform((count, *shape), draw) for shape in ((rank, inputs), (outputs, rank)))
        inner = stem.endswith(names.FUSED[0]) and any(
            each == f"{stem.rpartition('.')[0]}.{names.FUSED[1]}" for each, _ in _chosen(build)
        )
        owner = stem.rpartition(".")[0] + (names.INNER if inner else "")
        return build.experts(stem, owner, to, a, b if config.init_lora_weights is False else 0 * b)
    outputs, inputs = to.shape
    if to.parameter == "embedding.weight":
        if config.use_dora:
            raise ValueError(f"{stem}: an embedding has no DoRA here; leave it out of target_modules")
        return build.embedding(stem, to, torch.zeros(rank, outputs), torch.randn(inputs, rank, generator=draw))
    gaussian = config.init_lora_weights == "gaussian"
    begun = torch.randn(rank, inputs, generator=draw) / rank if gaussian else _uniform((rank, inputs), draw)
    given = {"a": begun, "b": torch.zeros(outputs, rank)}
    if config.init_lora_weights is False:
        given["b"] = _uniform((outputs, rank), draw)
    if config.lora_bias:
        given["bias"] = torch.zeros(outputs)
    part = build.matrix(stem, to, given)
    if config.use_dora:
        module, leaf = build.module(to)
        name = f"{stem}.lora_magnitude_vector"
        part.magnitude = build.parameter(name, deltas.row_norms(module, leaf, part))
        build.file(name, part.magnitude, to)


def _uniform(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Kaiming's with a = sqrt 5, as PyTorch begins a linear layer."""
    return torch.empty(shape).uniform_(-1 / math.sqrt(shape[-1]), 1 / math.sqrt(shape[-1]), generator=draw)


def _current(build: Build, to: Destination) -> Tensor:
    """The values that a checkpoint's tensor would have now."""
    parameter = build.model.get_parameter("embedding.weight" if to.parameter == HEAD else to.parameter)
    return names.crooked(parameter.detach()[to.start : to.start + to.shape[0]].clone(), to)
