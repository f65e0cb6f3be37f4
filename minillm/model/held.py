"""Parameters that stay quantised in memory and are multiplied as they are, or dequantised each time they are used.

A held parameter `name` of a module lies in the parts of its format, `weights/fp8.py` or `weights/ints.py`: its values
under its own name, and companions called the same with an ending. What is saved is memory, and with it the time to read
it; what it costs is arithmetic at every use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minillm.ops.stacked import HeldMatrices, Int4Matrices, Int8Matrices
from minillm.weights.fp8 import Fp8
from minillm.weights.ints import COMPANIONS, GROUP, Int4, Int8

Format = Fp8 | Int8 | Int4
METHOD = "minillm"  # what config.json calls the scheme of a folder that `minillm.quantize` wrote


@dataclass(frozen=True)
class Held:
    """How a parameter is held, and what else is known of the plain one: values of a row, and the type to compute in."""

    format: Format
    columns: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Scheme:
    """Which parameters become which integers: all that a product or a lookup can take so.

    Embedding and head are int8 under int4 too: at 4 bits they would add about half as much perplexity as all other
    matrices together. Raises ValueError for what is not supported.
    """

    matrices: Int8 | Int4

    @classmethod
    def of(cls, name: str, group_size: int | None = None, symmetric: bool = True) -> Scheme:
        """The scheme that a command line asks for."""
        if name == "int8":
            if group_size is not None or not symmetric:
                raise ValueError("int8 has one factor for each row; group size and zero points go with int4")
            return cls(Int8())
        if name != "int4":
            raise ValueError(f"quantize is {name!r}; use int8 or int4")
        return cls(Int4(GROUP if group_size is None else group_size, symmetric))

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Scheme | None:
        """The scheme that a config.json says its folder was written with; None where it is not of this project."""
        section = values.get("quantization_config")
        if not isinstance(section, dict) or section.get("quant_method") != METHOD:
            return None
        made = cls.of(str(section.get("format")), section.get("group_size"), section.get("symmetric") is not False)
        if section != made.written():
            raise ValueError(f"config.json: quantization_config says {section}, this version of minillm reads "
                             f"{made.written()}; write the folder again with it")  # fmt: skip
        return made

    def written(self) -> dict[str, Any]:
        """What `read` reads."""
        int4 = self.matrices if isinstance(self.matrices, Int4) else None
        return {
            "quant_method": METHOD,
            "format": "int4" if int4 else "int8",
            "group_size": int4.group if int4 else None,
            "symmetric": int4.symmetric if int4 else True,
            "embedding_format": "int8",
        }

    def formats(self, model: nn.Module) -> dict[str, Int8 | Int4]:
        """The format of each parameter of a model that is to be held."""
        found: dict[str, Int8 | Int4] = {}
        for name, parameter in model.named_parameters():
            owner, _, leaf = name.rpartition(".")
            one_row = parameter.shape[0] == 1  # the gate of a shared expert
            if leaf in getattr(model.get_submodule(owner), "MULTIPLIED", ()) and not one_row:
                found[name] = Int8() if owner in ("embedding", "head") else self.matrices
        return found


def hold(model: nn.Module, formats: Mapping[str, Format]) -> None:
    """Lay the named parameters of a model on the meta device out in their formats."""
    for name, made in formats.items():
        owner, _, leaf = name.rpartition(".")
        module, plain = model.get_submodule(owner), model.get_parameter(name)
        for ending, (shape, dtype) in made.parts(tuple(plain.shape)).items():
            part = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
            module.register_parameter(f"{leaf}{ending}", part)
        module.held = {**held_in(module), leaf: Held(made, plain.shape[-1], plain.dtype)}  # type: ignore[assignment]


def holdable(model: nn.Module, name: str) -> bool:
    """Whether a parameter's module can use it from fp8: by a product, or dequantised each time."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    return leaf in (*getattr(module, "MULTIPLIED", ()), *getattr(module, "DEQUANTISED", ()))


def plain_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter as if none were held; companions have none."""
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for owner, module in model.named_modules():
        for leaf, held in held_in(module).items():
            name = f"{owner}.{leaf}"
            found[name] = (*found[name][:-1], held.columns)
            for ending in COMPANIONS:
                found.pop(f"{name}{ending}", None)
    return found


def held_in(module: nn.Module) -> Mapping[str, Held]:
    """What of a module is held, by the parameter's name in it."""
    return module.__dict__.get("held", {})


def parts(module: nn.Module, leaf: str) -> dict[str, Tensor]:
    """The parts of a held parameter by their endings; what a row has one of as `[..., O]` again."""
    rows = getattr(module, leaf).shape[:-1]
    found = {ending: getattr(module, f"{leaf}{ending}") for ending in held_in(module)[leaf].format.parts((1, 1))}
    return {ending: part.view(rows) if part.dim() == 1 else part for ending, part in found.items()}


def product(module: nn.Module, leaf: str, ops: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., I]` times a parameter `[O, I]` of a module, as it lies in memory, plus bias: `[..., O]`."""
    weight, held = getattr(module, leaf), held_in(module).get(leaf)
    if held is None:
        return ops.linear(x, weight, bias)
    scale, made = getattr(module, f"{leaf}_scale"), held.format
    if isinstance(made, Int4):
        zero = None if made.symmetric else getattr(module, f"{leaf}_zero")
        return ops.int4_linear(x, weight, scale, zero, made.group, bias, getattr(module, f"{leaf}_factor"))
    return (ops.int8_linear if isinstance(made, Int8) else ops.fp8_linear)(x, weight, scale, bias)


def matrix(module: nn.Module, leaf: str, dtype: torch.dtype) -> Tensor:
    """A module's parameter `[O, I]` as numbers to compute with."""
    held = held_in(module).get(leaf)
    return getattr(module, leaf) if held is None else held.format.dequantise(parts(module, leaf), held.columns, dtype)


def lookup(module: nn.Module, leaf: str, rows: Tensor) -> Tensor:
    """Some rows of a held parameter `[O, I]`, int64 `[...]` -> `[..., I]`; no other is dequantised."""
    held = held_in(module)[leaf]
    chosen = {ending: part[rows] for ending, part in parts(module, leaf).items()}
    return held.format.dequantise(chosen, held.columns, held.dtype)


def matrices(module: nn.Module, leaf: str, dtype: torch.dtype) -> Tensor | HeldMatrices | Int8Matrices | Int4Matrices:
    """A module's parameter `[E, O, I]`, to be asked for one matrix at a time."""
    held = held_in(module).get(leaf)
    if held is None:
        return getattr(module, leaf)
    found = parts(module, leaf)
    if isinstance(held.format, Int4):
        given = found[""], found["_scale"], found["_factor"], found.get("_zero")
        return Int4Matrices(*given, held.format.group, held.columns, dtype)
    return (Int8Matrices if isinstance(held.format, Int8) else HeldMatrices)(found[""], found["_scale"], dtype)
