"""What PEFT's adapter_config.json means: which modules an adapter is for, and with what rank and scale.

Names of modules are those of transformers, such as "model.layers.0.self_attn.q_proj".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from minillm.guard import patterns
from minillm.guard.jsonfile import read_json
from minillm.guard.screen import note, shown

FILE = "adapter_config.json"
ALL = "all-linear"
MAX_RANK = 65536
# What says nothing about the numbers of an adapter that is there.
IDLE = {"auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "qalora_group_size",
        "megatron_core", "task_type", "peft_type", "runtime_config", "eva_config"}  # fmt: skip
# Ways to begin that leave the base model's weights as they are; others change them, and an adapter of those is nothing
# without the changes.
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
# Regular expressions of the file, or parts of some, which are matched with names of modules when it is read.
MATCHED = ("rank_pattern", "alpha_pattern", "exclude_modules", "modules_to_save", "layers_pattern")
REMEDY = "convert it to a plain LoRA with PEFT, or merge it there (merge_and_unload)"


@dataclass
class AdapterConfig:
    """PEFT's `LoraConfig`, as far as it means something here; keys that are not here must be off."""

    r: int = 8
    lora_alpha: float = 8
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    lora_dropout: float = 0.0
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    peft_version: str | None = None
    base_model_name_or_path: str | None = None

    def __post_init__(self) -> None:
        if not (type(self.r) is int and 0 < self.r <= MAX_RANK):
            raise ValueError(f"r is {shown(self.r)}, it must be a whole number from 1 to {MAX_RANK}")
        for key in ("lora_alpha", "lora_dropout"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{key} is {shown(value)}, it must be a number")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}, it must be at least 0 and less than 1")
        if self.bias not in ("none", "lora_only", "all"):
            raise ValueError(f"bias is {shown(self.bias)}; use none, lora_only or all")
        if self.init_lora_weights not in BEGINNINGS:
            raise ValueError(
                f"init_lora_weights is {shown(self.init_lora_weights)}, which changes the base model's weights too; "
                f"{REMEDY}"
            )
        for name in MATCHED:
            given = getattr(self, name) or ()
            patterns.check(name, [given] if isinstance(given, str) else given)
        if isinstance(wanted := self.target_modules, str) and wanted != ALL:
            _expression("target_modules", wanted)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> AdapterConfig:
        """Of the values of an adapter_config.json. Raises ValueError for kinds of adapters and for options that are not
        computed here."""
        kind = values.get("peft_type")
        if kind != "LORA":
            raise ValueError(f"peft_type is {shown(kind)}; only LORA adapters are read (rsLoRA and DoRA too); {REMEDY}")
        if values.get("fan_in_fan_out"):
            raise ValueError("fan_in_fan_out is true: an adapter of a Conv1D, which no model here has")
        if values.get("trainable_token_indices"):
            raise ValueError(f"trainable_token_indices is set; single rows of the embedding are not read; {REMEDY}")
        known = {each.name for each in fields(cls)}
        odd = [key for key, value in values.items() if key not in known | IDLE and not _is_off(value)]
        named = [key for key in odd if key in COMPUTED_OTHERWISE]
        if named:
            raise ValueError(f"{named[0]} is {shown(values[named[0]])}, which is not computed here; {REMEDY}")
        if odd:
            note(f"{FILE}: keys not understood and ignored: {', '.join(sorted(odd))}")
        return cls(**{key: value for key, value in values.items() if key in known and value is not None})

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Of the adapter in a folder."""
        path = folder / FILE
        if not path.is_file():
            raise ValueError(f"{folder}: no {FILE}; give the folder of a PEFT adapter")
        try:
            return cls.of(read_json(path))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None

    def rank(self, module: str) -> int:
        """Of the adapter of a module."""
        found = _by_pattern(self.rank_pattern, module, self.r)
        if not (type(found) is int and 0 < found <= MAX_RANK):
            raise ValueError(
                f"rank_pattern gives {module} {shown(found)}; a rank is a whole number from 1 to {MAX_RANK}"
            )
        return found

    def scale(self, module: str, rank: int | None = None) -> float:
        """What B A x is multiplied by."""
        rank, alpha = rank or self.rank(module), _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise ValueError(f"alpha_pattern gives {module} {shown(alpha)}; it must be a number")
        return float(alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str, is_head: bool = False) -> bool:
        """Whether a module has an adapter."""
        if self.excludes(module):
            return False
        wanted = self.target_modules
        if isinstance(wanted, str):
            return not is_head if wanted.lower() == ALL else re.fullmatch(wanted, module) is not None
        return wanted is not None and _ends_with(module, wanted) and self._in_layers(module)

    def targets_parameter(self, name: str) -> bool:
        """Whether a parameter, which holds all experts of a layer perhaps, has an adapter."""
        return _ends_with(name, self.target_parameters or ())

    def saves(self, module: str) -> bool:
        """Whether all of a module is trained: "norm" means input_layernorm too, as to PEFT."""
        return module.endswith(tuple(self.modules_to_save or ()))

    def excludes(self, module: str) -> bool:
        left_out = self.exclude_modules
        if any(patterns.compiled(rf"(^|.*\.){each}($|\..*)").match(module) for each in self.modules_to_save or ()):
            return True
        if isinstance(left_out, str):
            return patterns.compiled(left_out).fullmatch(module) is not None
        return _ends_with(module, left_out or ())

    def _in_layers(self, module: str) -> bool:
        """A layer is the first number in a name."""
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        given = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern or []
        ways = [rf"(?:^|.*?\.){each}\.(?P<layer>\d+)\." for each in given] or [r".*?\.[^.]*\.(?P<layer>\d+)\."]
        found = next((match for way in ways if (match := patterns.compiled(way).match(module))), None)
        return found is not None and int(found["layer"]) in ([layers] if isinstance(layers, int) else layers)

    def values(self) -> dict[str, Any]:
        """What adapter_config.json says."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        fixed = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "fan_in_fan_out": False}
        return {**fixed, **{key: value for key, value in found.items() if key != "peft_version"}}


# Keys of LoraConfig that change what an adapter computes.
COMPUTED_OTHERWISE = {"megatron_config", "loftq_config", "corda_config", "lora_ga_config", "velora_config",
                      "use_qalora", "alora_invocation_tokens", "monteclora_config", "layer_replication", "use_bdlora",
                      "arrow_config", "kasa_config", "ensure_weight_tying"}  # fmt: skip


def _is_off(value: Any) -> bool:
    return value is None or value is False or value == {} or value == [] or value == ""


def _ends_with(name: str, wanted: Sequence[str]) -> bool:
    return any(name == each or name.endswith(f".{each}") for each in wanted)


def _by_pattern(given: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """The first that matches the end of a name counts."""
    found = (value for key, value in given.items() if patterns.compiled(rf"(.*\.)?({key})$").match(module))
    return next(found, otherwise)


def _expression(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key} has {shown(pattern)}, which is no regular expression: {error}") from None
