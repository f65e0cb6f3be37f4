"""An adapter on a model: what it adds, what of it is trained, and the way into PEFT's files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm.adapters.config import FILE, AdapterConfig
from minillm.guard.writing import complete
from minillm.model import held
from minillm.model.decoder import Decoder
from minillm.model.linear import Linear
from minillm.model.lora import adapted
from minillm.weights.adapter import PREFIX
from minillm.weights.tensorfile import NAMES, Writer

TENSORS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Filed:
    """A tensor of the file, and how it is made of parameters."""

    parameters: tuple[Tensor, ...]
    made: Callable[..., Tensor] = lambda only: only

    def values(self) -> Tensor:
        return self.made(*(each.detach() for each in self.parameters))


class Adapter:
    """What one adapter adds to a model. Its parameters are fp32 and lie where the model does."""

    def __init__(self, model: Decoder, name: str, config: AdapterConfig):
        self.model, self.name, self.config = model, name, config
        self.choice = model.choice
        self.trained: dict[str, nn.Parameter] = {}  # by the name in the file
        self.filed: dict[str, Filed] = {}
        self.whole: dict[str, nn.Parameter] = {}  # new values of the model's parameters
        self.modules: list[str] = []  # what has an adapter, in transformers' names, and parameters that have one
        self.targeted: list[str] = []
        self._before: dict[str, tuple[Any, Any]] = {}

    def named(self) -> dict[str, nn.Parameter]:
        """The parameters of the adapter by their names in PEFT's file."""
        return dict(self.trained)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.trained.values())

    @property
    def deltas(self) -> dict[tuple[str, str], Any]:
        """What is added, by the module and its parameter."""
        return dict(adapted.taken(self.model, self.name))

    def onto(self, model: Decoder, share: Any) -> Adapter:
        """The same on a model that holds a share of this one (`parallel.share.Share`)."""
        made = Adapter(model, self.name, self.config)
        made.filed, made.modules, made.targeted = self.filed, self.modules, self.targeted
        for (owner, leaf), delta in self.deltas.items():
            shape = tuple(getattr(self.model.get_submodule(owner), leaf).shape)
            if (found := share.added(f"{owner}.{leaf}", delta, shape)) is not None:
                owner, _, leaf = found[0].rpartition(".")
                module = own_head(model) if owner == "head" else model.get_submodule(owner)
                adapted.put(module, leaf, made.name, made.choice, found[1])
        for path, values in self.whole.items():
            if (name := share.name(path)) is not None:
                made.whole[name] = share.value(name, values)
                if path in ("embedding.weight", "head.weight"):
                    own_head(model)
        made.trained = {name: share.parameter(each) for name, each in self.trained.items()}
        made.on()
        return made

    def freeze(self) -> None:
        """No more training: what is the same for every step is then made once."""
        for each in self.parameters():
            each.requires_grad_(False)

    def on(self) -> None:
        """Let every token go through this adapter, and no other."""
        self.choice.rows = ((self.name, None),)
        for path, values in self.whole.items():
            owner, _, leaf = path.rpartition(".")
            module = self.model.get_submodule(owner)
            self._before.setdefault(path, (module._parameters[leaf], module.__dict__.get("held")))
            module._parameters[leaf] = values
            module.__dict__["held"] = {k: v for k, v in held.held_in(module).items() if k != leaf}

    def off(self) -> None:
        """Let no token go through any adapter."""
        self.choice.rows = ()
        for path, (values, kept) in self._before.items():
            owner, _, leaf = path.rpartition(".")
            module = self.model.get_submodule(owner)
            module._parameters[leaf] = values
            module.__dict__["held"] = kept or {}
        self._before.clear()

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """The model without the adapter meanwhile."""
        self.off()
        try:
            yield
        finally:
            self.on()

    def write(self, folder: Path, base_name: str | None = None) -> None:
        """Write the folder that PEFT reads; each file is complete or as it was. `base_name` is the checkpoint that the
        adapter is for."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: filed.values().cpu() for name, filed in self.filed.items()}
        entries = {f"{PREFIX}{name}": (NAMES[each.dtype], each.shape) for name, each in values.items()}
        with Writer(folder / TENSORS, entries) as writer:
            for name, each in values.items():
                writer.write(f"{PREFIX}{name}", each)
        base = base_name or self.config.base_model_name_or_path
        # All are named, so nothing narrows them any more.
        targets: dict[str, Any] = {"target_modules": self.modules, "target_parameters": self.targeted or None}
        narrowed: dict[str, Any] = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
        made = replace(self.config, base_model_name_or_path=base, **targets, **narrowed).values()
        with complete(folder / FILE) as file:
            file.write(json.dumps(made, indent=2, ensure_ascii=False).encode())


def own_head(model: Decoder) -> Linear:
    """The head of a model, whose matrix is the embedding's where the two are tied: an adapter of one leaves the other
    as it is."""
    if model.head is None:
        with torch.device("meta"):
            head = Linear(model.spec.hidden_size, model.spec.vocab_size, model.ops)
        head.weight = model.embedding.weight
        for name, part in model.embedding.named_parameters(recurse=False):
            head._parameters[name] = part
        head.__dict__["held"] = dict(held.held_in(model.embedding))
        model.head = head
    return model.head
