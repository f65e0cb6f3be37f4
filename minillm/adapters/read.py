"""The adapter of a folder that PEFT wrote: every tensor is used, or one error lists what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minillm.adapters.adapter import TENSORS, Adapter
from minillm.adapters.build import Base, Build
from minillm.adapters.config import AdapterConfig
from minillm.guard.screen import note
from minillm.llm import LLM
from minillm.weights import adapter as names
from minillm.weights.checkpoint import brief
from minillm.weights.rules import Destination
from minillm.weights.source import InFile, Source
from minillm.weights.tensorfile import read_header

TYPES = ("F32", "F16", "BF16", "F64")
OLD = (0, 19)  # before this PEFT took matrices of experts for transposed ones


def read(llm: Base | LLM, folder: str | Path, name: str = "default") -> Adapter:
    """The adapter of a folder, on a model and switched on. Raises ValueError for a folder that is none, for options
    that are not computed here, and for tensors that are missing, too many, or of another shape."""
    folder = Path(folder).expanduser()
    build = Build(llm, AdapterConfig.read(folder), name, trained=False)
    tensors = _opened(folder)
    try:
        _Reading(build, tensors).fill()
    except ValueError as error:
        raise ValueError(f"{folder / TENSORS}: {error}") from None
    adapter = build.finish()
    adapter.on()
    return adapter


def _opened(folder: Path) -> dict[str, InFile]:
    path = folder / TENSORS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ValueError(f"{folder}: adapter_model.bin is a pickle, which is not read; save it with safetensors")
        raise ValueError(f"{folder}: no {TENSORS}; give the folder of a PEFT adapter")
    found = read_header(Source(path))
    if odd := [name for name, each in found.items() if each.word not in TYPES]:
        raise ValueError(f"{path}: {brief(odd)}: of type {found[odd[0]].word}; an adapter's tensors are plain numbers")
    return found


class _Reading:
    """Tensors on their way into an adapter."""

    def __init__(self, build: Build, tensors: Mapping[str, InFile]):
        self.build, self.tensors = build, tensors
        self.parts = names.parted(tensors)

    def values(self, tensor: str) -> Tensor:
        stored = self.tensors[tensor]
        made = stored.values().view(stored.shape).float()
        if not bool(made.isfinite().all()):
            raise ValueError(f"{tensor}: values that are not finite; copy it again")
        return made

    def fill(self) -> None:
        """Raises ValueError with all that does not fit."""
        stems, whole = self.parts.stems, self.parts.whole
        if not stems and not whole:
            raise ValueError("there are no tensors in it; copy it again")
        found, reasons = self.build.names.find([*(f"{stem}.weight" for stem in stems), *whole])
        fused = {stem: self._fused(stem) for stem in stems if f"{stem}.weight" not in found}
        at = {stem: found.get(f"{stem}.weight") or fused[stem] for stem in stems}
        unclaimed = [stem for stem, to in at.items() if to is None] + [name for name in whole if name not in found]
        left_out = sum(reasons.values())
        if len(unclaimed) > left_out:
            raise ValueError(f"no module of the model is meant by {len(unclaimed)} names: {brief(unclaimed)}; is the "
                             "adapter for another model?")  # fmt: skip
        for reason, count in reasons.items():
            note(f"{count} modules of the adapter left out: {reason}")
        known = {stem: to for stem, to in at.items() if to is not None}
        self._say_what_lacks(known)
        self._check_shapes({stem: to for stem, to in known.items() if stem not in fused}, found)
        for stem, to in known.items():
            self._one(stem, to, stem in fused)
        for (parameter, start), stack in self._stacks(known).items():
            self._stacked(parameter, start, stack)
        for name, tensor in whole.items():
            if name in found:
                self._whole(name, found[name], tensor)

    def _say_what_lacks(self, known: Mapping[str, Destination]) -> None:
        """An adapter may be for less than its config says, or be the half of one."""
        config, there = self.build.config, {(to.parameter, to.start) for to in known.values()}
        lacking = [
            name.removesuffix(".weight")
            for name, to in self.build.names.matrices().items()
            if (to.parameter, to.start) not in there and name.endswith(".weight") and self._of_one(to) is None
            if isinstance(config.target_modules, list) and config.targets(name.removesuffix(".weight"))
        ]
        if lacking:
            note(f"the adapter has no tensors for {len(lacking)} of its target_modules: {brief(lacking)}")

    def _check_shapes(self, at: Mapping[str, Destination], found: Mapping[str, Destination]) -> None:
        expected: list[tuple[str, tuple[int, ...]]] = []
        for stem, to in at.items():
            rank, (outputs, inputs) = self.build.config.rank(stem), to.shape[-2:]
            wanted = {"a": (rank, inputs), "b": (outputs, rank), "bias": (outputs,), "magnitude": (outputs,),
                      "embedding_a": (rank, outputs), "embedding_b": (inputs, rank)}  # fmt: skip
            expected += [(tensor, wanted[kind]) for kind, tensor in self.parts.stems[stem].items()]
        expected += [(tensor, found[name].stored_shape) for name, tensor in self.parts.whole.items() if name in found]
        wrong = [
            f"{tensor} is {list(self.tensors[tensor].shape)}, expected {list(shape)}"
            for tensor, shape in expected
            if self.tensors[tensor].shape != shape
        ]
        if wrong:
            advice = "r, rank_pattern or the model differ"
            raise ValueError(f"{len(wrong)} tensors of another shape: {brief(wrong)}; {advice}")

    def _fused(self, stem: str) -> Destination | None:
        """The parameter of experts that a module's pair is for; None where the module is none."""
        owner = stem.removesuffix(names.INNER)
        named, _ = self.build.names.find([f"{owner}.{leaf}" for leaf in names.FUSED])
        if not named:
            return None
        width = self.tensors[self.parts.stems[stem]["a"]].shape[1]
        widths = {name: to.shape[-1] for name, to in named.items()}
        targets = self.build.config.target_parameters or ()
        return named[names.fused_name(stem, self.parts.stems, targets, width, widths)]

    def _one(self, stem: str, to: Destination, fused: bool) -> None:
        """The adapter of one module, but for a matrix of one expert."""
        kinds = self.parts.stems[stem]
        if fused:
            if odd := sorted(set(kinds) - {"a", "b"}):
                raise ValueError(f"{kinds[odd[0]]}: experts have nothing but lora_A and lora_B")
            a, b = (self.values(kinds[half]) for half in "ab")
            self._of_experts(stem, to, a, b)
        elif self._of_one(to) is None:
            given = {kind: self.values(tensor) for kind, tensor in kinds.items()}
            if "embedding_a" in given:
                return self.build.embedding(stem, to, given["embedding_a"], given["embedding_b"])
            if ("magnitude" in given) != self.build.config.use_dora:
                raise ValueError(f"{stem}: use_dora is {self.build.config.use_dora}, its tensors say otherwise")
            self.build.matrix(stem, to, given)

    def _of_experts(self, stem: str, to: Destination, a: Tensor, b: Tensor) -> None:
        assert to.whole is not None
        (count, outputs, inputs), config = to.whole, self.build.config
        parameter = f"{stem.removesuffix(names.INNER)}.{names.FUSED[to.parameter.endswith('down')]}"
        transposed = to.layout is not None and names.turns(to.layout)
        old = a.shape[1] != inputs and not transposed
        if outputs == inputs and not transposed:
            if config.peft_version is None:
                raise ValueError(
                    f"{stem}: which side of its square matrices is meant depends on peft_version; state it"
                )
            old = tuple(int(each) for each in config.peft_version.split(".")[:2]) < OLD
        split = names.of_experts(a, b, to, old)
        rank = len(a) // count
        if rank != config.rank(parameter):
            raise ValueError(f"{stem}: rank {rank}, but adapter_config.json says {config.rank(parameter)}")
        self.build.experts(parameter, stem, to, *split)

    def _of_one(self, to: Destination) -> tuple[int, int] | None:
        return names.of_one(to, self.build.shapes[to.parameter])

    def _stacks(self, known: Mapping[str, Destination]) -> dict[tuple[str, int], dict[int, str]]:
        """The modules of single experts: by the parameter they lie in and the row there, expert -> module."""
        found: dict[tuple[str, int], dict[int, str]] = {}
        for stem, to in known.items():
            if (one := self._of_one(to)) is not None:
                expert, start = one
                found.setdefault((to.parameter, start), {})[expert] = stem
        return found

    def _stacked(self, parameter: str, start: int, stack: Mapping[int, str]) -> None:
        """One adapter of all experts' rows from one on, of those of each expert by itself."""
        count = self.build.shapes[parameter][0]
        stems = [stack[expert] for expert in sorted(stack)]
        scales = {self.build.config.scale(stem) for stem in stems}
        ranks = {self.build.config.rank(stem) for stem in stems}
        if len(scales) > 1 or len(ranks) > 1:
            raise ValueError(f"{stems[0]}: ranks and scales must be those of all experts")
        halves = [[self.values(self.parts.stems[stem][half]) for stem in stems] for half in "ab"]
        made = []
        for each in halves:
            stacked = torch.zeros(count, *each[0].shape)
            stacked[sorted(stack)] = torch.stack(each)
            made.append(stacked)
        self.build.stacked(stems[0], parameter, start, made[0], made[1], scales.pop())

    def _whole(self, name: str, to: Destination, tensor: str) -> None:
        values = self.values(tensor)
        if names.INNER in tensor and not name.endswith(".bias") and self.build.holds(to, values):
            return  # what PEFT saves beside an adapter of the embedding
        self.build.whole(name, to, values)
