"""config.json: read once, both of its spellings folded into one, every key accounted for.

Published files say `rope_theta`, `rope_scaling` (with `type` or `rope_type`) and `torch_dtype`; transformers 5 writes
`rope_parameters` and `dtype`. A family reads what it understands through `Config`, which fills absent keys from the
family's own defaults and remembers what was asked for: `unread` is what nobody understood.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minillm.guard.jsonfile import read_json

MAX_SIZE = 2**20  # of any one dimension: the product of three, in bytes, still fits a tensor
MAX_POSITIONS = 2**31 - 1

# Keys that change nothing when a plain decoder runs: training, bookkeeping, generation (read elsewhere).
HARMLESS = frozenset(
    {
        # bookkeeping
        "_name_or_path",
        "architectures",
        "dtype",
        "model_type",
        "tokenizer_class",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "quantization_config",
        # training
        "attention_dropout",
        "embd_pdrop",
        "hidden_dropout",
        "initializer_range",
        "aux_loss_alpha",
        "ep_size",
        "expert_dropout",
        "input_jitter_noise",
        "output_router_logits",
        "router_aux_loss_coef",
        "seq_aux",
        "problem_type",
        "resid_pdrop",
        "id2label",
        "label2id",
        # how transformers runs it
        "attn_implementation",
        "_attn_implementation",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "keys_to_ignore_at_inference",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "return_dict",
        "task_specific_params",
        "torchscript",
        "use_cache",
        "use_return_dict",
        # generation and tokenizer, read elsewhere
        "bos_token_id",
        "do_sample",
        "eos_token_id",
        "max_length",
        "pad_token_id",
        "sep_token_id",
        "temperature",
        "top_k",
        "top_p",
        "unk_token_id",
    }
)


def read(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises ValueError where there is no such folder or file."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json in this folder; expected a checkpoint in Hugging Face layout")
    return read_json(folder / "config.json")


class Config:
    """The values of a config.json over a family's defaults; each getter checks the type and names the key."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]):
        self.values = {"dtype" if key == "torch_dtype" else key: value for key, value in values.items()}
        self.defaults = defaults
        self._asked: set[str] = set()
        self._reported: set[str] = set()

    def get(self, key: str) -> Any:
        """The value, or the family's default where the key is absent; an explicit null is None."""
        self._asked.add(key)
        if key in self.values:
            return self.values[key]
        if key not in self.defaults:
            raise ValueError(f"config.json lacks {key!r}, which has no default for model_type {self.model_type!r}")
        return self.defaults[key]

    def size(self, key: str, limit: int = MAX_SIZE) -> int:
        """A positive integer."""
        return positive_integer(key, self.get(key), limit)

    def optional_size(self, key: str) -> int | None:
        return None if self.get(key) is None else self.size(key)

    def positions(self, key: str) -> int:
        return self.size(key, MAX_POSITIONS)

    def number(self, key: str) -> float:
        return number(key, self.get(key))

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise ValueError(f"config.json: {key} is {value!r}, expected true or false")
        return value

    def choice(self, key: str, choices: Mapping[str, Any]) -> Any:
        """What `choices` has for the value."""
        value = self.get(key)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"config.json: {key} is {value!r}, supported are {', '.join(choices)}")
        return choices[value]

    def rope(self) -> dict[str, Any]:
        """The rotary parameters in one flat dictionary: `rope_type`, `rope_theta`, and the scaling's own keys."""
        scaling = self.get("rope_scaling") or self.get("rope_parameters") or {}
        if not isinstance(scaling, dict):
            raise ValueError(f"config.json: rope_scaling is {scaling!r}, expected an object or null")
        values = {"rope_theta": self.get("rope_theta"), **scaling}
        kind = values.pop("type", "default")
        values.setdefault("rope_type", kind)
        if self.values.get("original_max_position_embeddings") is not None:
            values["original_max_position_embeddings"] = self.get("original_max_position_embeddings")
        return values

    @property
    def model_type(self) -> Any:
        return self.values.get("model_type")

    @property
    def dtype(self) -> str | None:
        """The dtype the checkpoint says it is stored in, such as "bfloat16"; None where it does not say."""
        value = self.values.get("dtype")
        return None if value is None else str(value).removeprefix("torch.")

    def report_unread(self, keys: Iterable[str]) -> None:
        """Keys inside a section that its reader found no use for."""
        self._reported.update(keys)

    @property
    def asked(self) -> set[str]:
        """The keys that somebody asked for, in a config or not."""
        return self._asked

    @property
    def unread(self) -> list[str]:
        """Keys with a value that nobody asked for and that are not known to be harmless."""
        return sorted(self._reported) + sorted(
            key
            for key, value in self.values.items()
            if key not in self._asked
            and key not in HARMLESS
            and not (value is None or value is False or value in ({}, []))
        )


def quantization(values: Mapping[str, Any]) -> str | None:
    """The scheme a checkpoint is quantised with, such as "gptq" or "bitsandbytes nf4"; None if it is not."""
    section = values.get("quantization_config")
    if not section:
        return None
    if not isinstance(section, dict):
        return str(section)
    method = str(section.get("quant_method", "an unknown scheme"))
    if section.get("load_in_4bit"):
        return f"{method} {section.get('bnb_4bit_quant_type', '4-bit')}"
    return f"{method} int8" if section.get("load_in_8bit") else method


def is_readable(values: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's quantisation is one of `weights/schemes.py`, MXFP4 or FP8 as e4m3 with a factor per
    128 x 128 block, or of this project's own (`weights/ints.py`)."""
    section = values.get("quantization_config")
    if not isinstance(section, dict) or section.get("quant_method") != "fp8":
        return quantization(values) in ("mxfp4", "minillm")
    return section.get("weight_block_size") == [128, 128] and section.get("fmt", "e4m3") == "e4m3"


def positive_integer(key: str, value: Any, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
        raise ValueError(f"config.json: {key} is {repr(value)[:40]}, expected an integer from 1 to {limit}")
    return value


def number(key: str, value: Any, low: float = 1e-12, high: float = 1e12) -> float:
    """A number within bounds that no real config comes near and that no formula overflows in."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"config.json: {key} is {str(value)[:40]}, expected a number from {low:g} to {high:g}")
    return float(value)
