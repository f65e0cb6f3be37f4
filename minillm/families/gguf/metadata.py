"""The metadata of a GGUF file for an architecture: values by key, and how positions are scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from minillm.guard.screen import shown

FACTORS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
MAX_FACTORS, MAX_SIZE = 2**16, 2**20


class Tensors(Protocol):
    """The tensors of a file: their shapes, the values of one, and what the blocks of each kind take in bytes."""

    def shape(self, name: str, /) -> tuple[int, ...] | None: ...
    def values(self, name: str, /) -> list[float]: ...
    def kinds(self) -> Mapping[str, int]: ...


class File:
    """The metadata of an architecture; what was asked for is known afterwards."""

    def __init__(self, metadata: Mapping[str, Any], tensors: Tensors):
        self.architecture = metadata.get("general.architecture")
        self.own = {
            key.removeprefix(f"{self.architecture}."): value
            for key, value in metadata.items()
            if key.startswith(f"{self.architecture}.")
        }
        self.tensors, self.asked, self.listed = tensors, set[str](), set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        """A value; one for all layers, where the file lists one for each. Raises ValueError where these differ, and
        `each` was not asked for them before."""
        self.asked.add(key)
        value = self.own.get(key, default)
        if isinstance(value, np.ndarray):
            if len(value) == 0 or (key not in self.listed and (value != value[0]).any()):
                raise ValueError(f"{self.architecture}.{key} differs from layer to layer, which is not supported")
            value = value[0].item()
        if isinstance(value, list):
            raise ValueError(f"{self.architecture}.{key} is a list of texts, expected a number")
        return _shortest(value) if isinstance(value, float) else value

    def each(self, key: str) -> list[Any] | None:
        """What a file lists, one for each layer, or the one that is for all; None where it says nothing."""
        self.asked.add(key)
        self.listed.add(key)
        value = self.own.get(key)
        if isinstance(value, np.ndarray):
            return [_shortest(each) if isinstance(each, float) else each for each in value.tolist()]
        return None if value is None else [self.get(key)]

    def need(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise ValueError(f"{self.architecture}.{key} is missing; download the file again")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number that others are computed of."""
        value = self.need(key) if default is None else self.get(key, default)
        if type(value) is not int or not 0 <= value <= MAX_SIZE:
            raise ValueError(f"{self.architecture}.{key} is {shown(value)}, expected a whole number up to {MAX_SIZE}")
        return value

    def head(self) -> int:
        """The size of a head where a file does not say it."""
        hidden, heads = self.size("embedding_length"), self.size("attention.head_count")
        if not heads or not hidden or hidden % heads:
            raise ValueError(f"{self.architecture}.embedding_length {hidden} is no multiple of {heads} heads")
        return hidden // heads

    def has(self, tensor: str) -> bool:
        return self.tensors.shape(tensor) is not None

    def unread(self) -> dict[str, Any]:
        left = {key: value for key, value in self.own.items() if key not in self.asked}
        return {f"{self.architecture}.{key}": str(value)[:60] for key, value in left.items()}


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to the same fp32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def scaling(file: File) -> dict[str, Any] | None:
    """Scaled positions: by a rule with numbers, or by a tensor that has a factor for each frequency."""
    kind, factor = file.get("rope.scaling.type", "none"), file.get("rope.scaling.factor")
    file.get("rope.scaling.finetuned")
    original = file.get("rope.scaling.original_context_length")
    if file.has(FACTORS):
        found = factors(file, FACTORS)
        whole = file.need("context_length")
        return {"rope_type": "longrope", "short_factor": found, "long_factor": found, "factor": 1.0,
                "original_max_position_embeddings": whole}  # fmt: skip
    if kind == "linear" and factor not in (None, 0.0, 1.0):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        multiplier = file.get("rope.scaling.yarn_log_multiplier", 0.0)
        if not isinstance(multiplier, float):
            raise ValueError(f"{file.architecture}.rope.scaling.yarn_log_multiplier is {shown(multiplier)}")
        mscale = round(multiplier / 0.1, 6)
        if (also := file.get("rope.scaling.attn_factor", 1.0)) != 1:
            raise ValueError(
                f"{file.architecture}.rope.scaling.attn_factor is {also}, which is not supported with yarn"
            )
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": file.get("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": file.get("rope.scaling.yarn_beta_slow", 1.0),
            **({"mscale": mscale, "mscale_all_dim": mscale} if mscale else {}),
        }
    if kind not in ("none", "linear", "longrope"):
        raise ValueError(f"{file.architecture}.rope.scaling.type is {kind!r}; none, linear, yarn, longrope are read")
    return None


def factors(file: File, name: str) -> list[float]:
    shape = file.tensors.shape(name)
    if shape is None or len(shape) != 1 or shape[0] > MAX_FACTORS:
        raise ValueError(f"{name} is {shape and list(shape)}, expected a factor for each frequency of a head")
    return [_shortest(each) for each in file.tensors.values(name)]
