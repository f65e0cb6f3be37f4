"""An adapter while it is made, part by part: what `attach.py` and `read.py` have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minillm import families
from minillm.adapters.adapter import Adapter, Filed, own_head
from minillm.adapters.config import AdapterConfig
from minillm.llm import LLM
from minillm.model import held
from minillm.model.decoder import Decoder, skeleton
from minillm.model.embedding import Embedding
from minillm.model.linear import Linear
from minillm.model.lora import adapted
from minillm.model.lora.deltas import Deltas, EmbeddingDelta, Part, together
from minillm.model.mla import LatentAttention
from minillm.model.moe import Experts, Router
from minillm.weights import adapter as names
from minillm.weights.rules import Destination

HEAD = "head.weight"


@dataclass
class Base:
    """What an adapter is for: a model, on the meta device if only names and shapes count, and its config.json. An `LLM`
    is one too."""

    model: Decoder
    values: Mapping[str, Any]
    device: torch.device


class Build:
    """An adapter that grows part by part."""

    def __init__(self, llm: Base | LLM, config: AdapterConfig, name: str, trained: bool):
        self.model, self.config, self.device = llm.model, config, llm.device
        self.adapter = Adapter(llm.model, name, config)
        self.trained = trained
        self.spread: set[str] = set()  # parameters of experts whose adapters the file has expert by expert
        spec, rules = families.own_names(llm.values)
        plain = skeleton(spec, torch.float32)
        destinations = plain.destinations()
        if HEAD not in rules.values():
            del destinations[HEAD]
        self.shapes = {name: tuple(each.shape) for name, each in plain.named_parameters()}
        self.names = names.Names(rules, destinations, families.renamed(llm.values))

    def parameter(self, name: str, values: Tensor) -> nn.Parameter:
        """A tensor of the file of this name as a parameter, trained or not."""
        made = nn.Parameter(values.to(self.device, torch.float32), requires_grad=self.trained)
        self.adapter.trained[name] = made
        return made

    def module(self, to: Destination) -> tuple[nn.Module, str]:
        """The module and the parameter that a destination is of. Raises ValueError where no adapter can be."""
        if to.parameter == HEAD:
            own_head(self.model)
        owner, _, leaf = to.parameter.rpartition(".")
        module = self.model.get_submodule(owner)
        kinds = {Linear: ("weight",), Embedding: ("weight",), Router: ("weight",), LatentAttention: ("kv_up",),
                 Experts: Experts.MULTIPLIED}  # fmt: skip
        if leaf not in kinds.get(type(module), ()):
            raise ValueError(f"{to.parameter}: no adapter can be there")
        return module, leaf

    def deltas(self, to: Destination) -> Deltas:
        """Where parts of a parameter's adapter go."""
        module, leaf = self.module(to)
        found = adapted.adapted(module)
        known = found.of.get(leaf, {}).get(self.adapter.name) if found else None
        if known is None:
            known = Deltas()
            adapted.put(module, leaf, self.adapter.name, self.adapter.choice, known)
        assert isinstance(known, Deltas)
        return known

    def matrix(self, stem: str, to: Destination, given: Mapping[str, Tensor]) -> Part:
        """The adapter of a matrix: its tensors by kind, as they are in the file."""
        start, inside = to.start, f"{stem}.lora_"
        if isinstance(self.module(to)[0], Router) and given.keys() > {"a", "b"}:
            raise ValueError(f"{stem}: a router has nothing but lora_A and lora_B; switch use_dora and lora_bias off")
        a = self.parameter(f"{inside}A.weight", given["a"])
        b = self.parameter(f"{inside}B.weight", names.straight(given["b"], to))
        self.file(f"{inside}A.weight", a)
        self.file(f"{inside}B.weight", b, to)
        part = Part(start, a, b, self.config.scale(stem), dropout=self.config.lora_dropout)
        if "bias" in given:
            part.bias = self.parameter(f"{inside}B.bias", names.straight(given["bias"], to))
            self.file(f"{inside}B.bias", part.bias, to)
        if "magnitude" in given:
            part.magnitude = self.parameter(f"{inside}magnitude_vector", names.straight(given["magnitude"], to))
            self.file(f"{inside}magnitude_vector", part.magnitude, to)
        self.place(to, part)
        self.target(stem, to)
        return part

    def target(self, stem: str, to: Destination) -> None:
        """Note what has an adapter, as PEFT finds it: routers are no linear modules of transformers."""
        if isinstance(self.module(to)[0], Router):
            self.adapter.targeted.append(f"{stem}.weight")
        else:
            self.adapter.modules.append(stem)

    def place(self, to: Destination, part: Part) -> None:
        parts = self.deltas(to).parts
        parts.append(part)
        parts.sort(key=lambda each: each.start)

    def file(self, name: str, parameter: Tensor, to: Destination | None = None) -> None:
        """Let a parameter be a tensor of the file, in the order of a checkpoint's rows."""
        made = (lambda only: only) if to is None else (lambda only: names.crooked(only, to))
        self.adapter.filed[name] = Filed((parameter,), made)

    def embedding(self, stem: str, to: Destination, a: Tensor, b: Tensor) -> None:
        module, leaf = self.module(to)
        kept = [self.parameter(f"{stem}.lora_embedding_{half}", each) for half, each in (("A", a), ("B", b))]
        for half, each in zip("AB", kept, strict=True):
            self.file(f"{stem}.lora_embedding_{half}", each)
        delta = EmbeddingDelta(kept[0], kept[1], self.config.scale(stem))
        adapted.put(module, leaf, self.adapter.name, self.adapter.choice, delta)
        self.target(stem, to)

    def experts(self, name: str, stem: str, to: Destination, a: Tensor, b: Tensor) -> None:
        """The adapter of all experts' matrices, the parameter `name`: a `[E, r, in]`, b `[E, out, r]`; `stem` is what
        its tensors are called by."""
        kept = [self.parameter(f"{stem}.lora_{half}.weight", each) for half, each in (("A", a), ("B", b))]
        for which, half in enumerate("AB"):
            self.adapter.filed[f"{stem}.lora_{half}.weight"] = Filed(
                tuple(kept), lambda a, b, which=which: names.fused(a, b, to)[which]
            )
        self.place(to, Part(0, kept[0], kept[1], self.config.scale(name)))
        self.adapter.targeted.append(name)

    def stacked(self, stem: str, parameter: str, start: int, a: Tensor, b: Tensor, scale: float) -> None:
        """The adapter of rows of all experts' matrices, a `[E, r, in]`, b `[E, rows, r]`, which the file has expert by
        expert; `stem` is that of one of them."""
        kept = [self.parameter(f"{stem}.all.lora_{half}", each) for half, each in (("A", a), ("B", b))]
        to = Destination(parameter, 0, self.shapes[parameter])
        self.place(to, Part(start, kept[0], kept[1], scale))
        self.spread.add(parameter)

    def finish(self) -> Adapter:
        """The adapter, with all that its files will say."""
        fused = self.names.fused() if self.spread else {}
        adapter = self.adapter
        adapter.targeted += [name for name, to in fused.items() if to.parameter in self.spread]
        for name, to in fused.items():
            if to.parameter in self.spread:
                self._file_together(name, to)
        adapter.modules = _short(adapter.modules, self.names.matrices())
        return adapter

    def _file_together(self, name: str, to: Destination) -> None:
        """Let the adapters of rows of a parameter of experts be one pair in the file, of the sum of their ranks."""
        parts, config = self.deltas(to).parts, self.config
        rank = sum(part.a.shape[1] for part in parts)
        root = rank**0.5 if config.use_rslora else rank
        exact = re.escape(name)
        config.rank_pattern = {exact: rank, **config.rank_pattern}
        config.alpha_pattern = {exact: parts[0].scale * root, **config.alpha_pattern}
        owner = name.rpartition(".")[0]
        inner = name.endswith(names.FUSED[0]) and f"{owner}.{names.FUSED[1]}" in self.adapter.targeted
        stem, given = owner + (names.INNER if inner else ""), tuple(each for part in parts for each in (part.a, part.b))
        outputs = self.shapes[to.parameter][1]
        pair = lambda: names.fused(*together(parts, outputs), to)  # noqa: E731
        self.adapter.filed[f"{stem}.lora_A.weight"] = Filed(given, lambda *_: pair()[0])
        self.adapter.filed[f"{stem}.lora_B.weight"] = Filed(given, lambda *_: pair()[1])

    def holds(self, to: Destination, values: Tensor) -> bool:
        """Whether the model is known to have these values already, rounded to its type."""
        module, leaf = self.module(to)
        if held.held_in(module).get(leaf) is not None:
            return True
        if getattr(module, leaf).device.type == "meta":
            return False
        return torch.equal(
            getattr(module, leaf)[to.start : to.start + to.shape[0]], values.to(self.device, self.model.dtype)
        )

    def whole(self, name: str, to: Destination, values: Tensor) -> None:
        """New values of a parameter, or of rows of a bias, which a checkpoint has under this name."""
        stem, _, last = name.rpartition(".")
        if last == "bias" and stem in self.adapter.modules:
            name = f"{stem}{names.INNER}.bias"
        owner, _, leaf = to.parameter.rpartition(".")
        if leaf == "bias" and isinstance(self.model.get_submodule(owner), Linear):
            kept = self.parameter(name, names.straight(values, to))
            self.deltas(replace(to, parameter=f"{owner}.weight")).biases.append((to.start, kept))
            return self.file(name, kept, to)
        if to.shape[0] != self.shapes[to.parameter][0]:
            raise ValueError(f"{name}: rows of a matrix that holds others too are not replaced here; use LoRA for it")
        if to.parameter in ("embedding.weight", HEAD):
            own_head(self.model)
        made = values if to.layout is None else _laid(values, to)
        parameter = nn.Parameter(made.to(self.device, self._dtype(to.parameter)), requires_grad=self.trained)
        self.adapter.trained[name] = self.adapter.whole[to.parameter] = parameter
        self.file(name, parameter, to)

    def _dtype(self, path: str) -> torch.dtype:
        owner, _, leaf = path.rpartition(".")
        module = self.model.get_submodule(owner)
        return torch.float32 if leaf in getattr(module, "FP32", ()) else self.model.dtype


def _laid(values: Tensor, to: Destination) -> Tensor:
    assert to.layout is not None
    made = torch.empty(to.shape, dtype=values.dtype)
    to.layout.copy(values, made)
    return made


def _short(stems: list[str], matrices: Mapping[str, Destination]) -> list[str]:
    """Names as people write them: the last part alone, where all modules that end so are meant."""
    found, left = list[str](), list(stems)
    for leaf in dict.fromkeys(stem.rpartition(".")[2] for stem in stems):
        ending = f".{leaf}.weight"
        if {name.removesuffix(".weight") for name in matrices if f".{name}".endswith(ending)} <= set(stems):
            found.append(leaf)
            left = [stem for stem in left if not f".{stem}".endswith(f".{leaf}")]
    return found + left
