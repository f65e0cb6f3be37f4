"""config.json: read once, both of its spellings folded into one, every key accounted for.

Published files say `rope_theta`, `rope_scaling` (with `type` or `rope_type`) and `torch_dtype`; transformers 5 writes
`rope_parameters` and `dtype`. A family reads what it understands through `Config`, which fills absent keys from the
family's own defaults and remembers what was asked for: `unread` is what nobody understood.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from minillm.guard.files import is_folder, is_there
from minillm.guard.jsonfile import read_json
from minillm.guard.screen import shown

MAX_SIZE = 2**20  # of any one dimension: the product of three, in bytes, still fits a tensor
MAX_POSITIONS = 2**31 - 1

# Keys that change nothing when a plain decoder runs, and what their values are: what runs such a checkpoint elsewhere
# goes by them.
TEXT, FLAG, NUMBER, LIST, OBJECT = "a text", "true or false", "a number", "a list", "an object"
IDS = "a token id or a list of them"
IS: dict[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    FLAG: lambda value: isinstance(value, bool),
    NUMBER: lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    LIST: lambda value: isinstance(value, list),
    OBJECT: lambda value: isinstance(value, dict),
    IDS: lambda value: all(type(each) is int for each in (value if isinstance(value, list) else [value])),
}
HARMLESS = {
    **dict.fromkeys(  # bookkeeping
        """_name_or_path dtype model_type tokenizer_class transformers_version unsloth_version problem_type
        attn_implementation _attn_implementation cache_implementation""".split(),
        TEXT,
    ),
    **dict.fromkeys(
        """unsloth_fixed is_encoder_decoder output_attentions output_hidden_states output_router_logits return_dict
        seq_aux torchscript use_cache use_return_dict do_sample _from_model_config""".split(),
        FLAG,
    ),
    **dict.fromkeys(  # training, and generation, which is read elsewhere
        """attention_dropout attn_pdrop embd_pdrop embed_dropout embedding_dropout hidden_dropout residual_dropout
        initializer_range embedding_initializer_range aux_loss_alpha ep_size expert_dropout input_jitter_noise
        router_aux_loss_coef resid_pdrop chunk_size_feed_forward pretraining_tp max_length min_length
        temperature top_k top_p typical_p diversity_penalty length_penalty repetition_penalty no_repeat_ngram_size
        encoder_no_repeat_ngram_size num_beams num_beam_groups num_return_sequences""".split(),
        NUMBER,
    ),
    **dict.fromkeys("architectures keys_to_ignore_at_inference".split(), LIST),
    **dict.fromkeys(
        "quantization_config quantization id2label label2id task_specific_params transformers.js_config".split(), OBJECT
    ),
    **dict.fromkeys("bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id".split(), IDS),
}


def read(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; its `quantization_config` has all that is said of that, wherever it says it. Raises
    ValueError where there is no such folder or file."""
    if not is_folder(folder):
        raise ValueError(f"{folder}: no such folder")
    if not is_there(folder / "config.json"):
        raise ValueError(f"{folder}: no config.json in this folder; expected a checkpoint in Hugging Face layout")
    values = named(read_json(folder / "config.json"))
    found, stated = section(folder, values), values.get(SECTIONS[0])
    given = {key: value for key, value in stated.items() if value is not None} if isinstance(stated, dict) else {}
    if not found or found == given:
        return values
    return {**{key: value for key, value in values.items() if key not in SECTIONS}, SECTIONS[0]: found}


def named(values: dict[str, Any]) -> dict[str, Any]:
    """A config.json that has a model_type: some that came with code of their own name their class alone,
    "LlamaForCausalLM", whose first part in small letters is the model_type of others."""
    stated = values.get("architectures")
    if "model_type" in values or not (isinstance(stated, list) and stated and isinstance(stated[0], str)):
        return values
    return {"model_type": stated[0].partition("For")[0].lower(), **values}


class Config:
    """The values of a config.json over a family's defaults; each getter checks the type and names the key."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]):
        same({key: values.get(key) for key in ("torch_dtype", "dtype")})
        self.values = {"dtype" if key == "torch_dtype" else key: value for key, value in values.items()}
        for key, kind in HARMLESS.items():
            if (value := self.values.get(key)) is not None and not IS[kind](value):
                raise ValueError(f"config.json: {key} is {shown(value)}, expected {kind}")
        if self.values.get("is_encoder_decoder"):
            raise ValueError("config.json: is_encoder_decoder is true; what has an encoder does not continue a text")
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
            raise ValueError(f"config.json: {key} is {shown(value)}, expected true or false")
        return value

    def choice(self, key: str, choices: Mapping[str, Any]) -> Any:
        """What `choices` has for the value."""
        value = self.get(key)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"config.json: {key} is {shown(value)}, supported are {', '.join(choices)}")
        return choices[value]

    def derived(self, key: str, meanings: Collection[int]) -> None:
        """A value that follows from others, or stands for one of several that do, and that nothing else depends on."""
        value = self.get(key)
        if value is not None and (type(value) is not int or value not in meanings):
            words = " or ".join(map(str, sorted(meanings)))
            raise ValueError(f"config.json: {key} is {shown(value)}, but its other values make that {words}")

    def without_effect(self, keys: Iterable[str]) -> None:
        """Keys that are understood and that nothing here depends on."""
        self._asked.update(keys)

    def rope(self) -> dict[str, Any]:
        """The rotary parameters in one flat dictionary: `rope_type`, `rope_theta`, and the scaling's own keys."""
        section = "rope_scaling" if self.get("rope_scaling") else "rope_parameters"
        scaling = self.get(section) or {}
        if not isinstance(scaling, dict):
            raise ValueError(f"config.json: {section} is {shown(scaling)}, expected an object or null")
        same({"rope_theta": self.values.get("rope_theta"), f"{section}.rope_theta": scaling.get("rope_theta")})
        same({f"{section}.{key}": scaling.get(key) for key in ("type", "rope_type")})
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


def same(given: Mapping[str, Any]) -> None:
    """Raise ValueError where keys that mean the same have values that differ; what is None says nothing."""
    given = {key: value for key, value in given.items() if value is not None}
    first = next(iter(given.values()), None)
    if any(value != first for value in given.values()):
        contradiction = " and ".join(f"{key} is {shown(value)}" for key, value in given.items())
        raise ValueError(f"config.json: {contradiction}; they mean the same: leave one out")


def quantization(values: Mapping[str, Any]) -> str | None:
    """The scheme a checkpoint is quantised with, such as "gptq" or "bitsandbytes nf4"; None if it is not."""
    section = values.get("quantization_config")
    if not section:
        return None
    if not isinstance(section, dict):
        return str(section)
    named = section.get("quant_method") or section.get("quant_algo")
    method = named or ("mlx" if _is_mlx(section) else "an unknown scheme")
    if section.get("load_in_4bit"):
        return f"{method} {section.get('bnb_4bit_quant_type', '4-bit')}"
    return f"{method} int8" if section.get("load_in_8bit") else str(method)


def _is_mlx(section: Mapping[str, Any]) -> bool:
    """MLX names no method; nobody else leaves it out and says these two."""
    return "quant_method" not in section and {"bits", "group_size"} <= set(section)


# Where else tools say how they have quantised: keys of config.json (compressed-tensors before 2024, MLX), and files.
SECTIONS = ("quantization_config", "compression_config", "quantization")
SIDECARS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def section(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """All that a checkpoint says of its quantisation, in one; what config.json says comes before files beside it."""
    inner = values.get("text_config")
    places = [values, inner if isinstance(inner, dict) else {}]
    found = [place[key] for place in places for key in SECTIONS if isinstance(place.get(key), dict)]
    for name in SIDECARS:
        if is_there(folder / name):
            beside = read_json(folder / name)
            found += [each for each in (beside, beside.get("quantization")) if isinstance(each, dict)]
    return {key: value for each in reversed(found) for key, value in each.items() if value is not None}


# The schemes whose tensors can be read: which of them a tensor is in, and how, it tells itself (`weights/formats/`).
READABLE = (
    "minillm", "mxfp4", "fp8", "gptq", "awq", "auto-round", "intel/auto-round", "bitsandbytes", "mlx", "torchao",
    "compressed-tensors", "modelopt", "fbgemm_fp8", "mxfp8", "gguf",
)  # fmt: skip


E4M3 = ("e4m3", "float8_e4m3fn")  # what "fmt" calls it


def is_readable(values: Mapping[str, Any]) -> bool:
    """Whether the scheme that a checkpoint names can be read; of FP8 that is e4m3, and of its blocks 128 x 128."""
    section = values.get("quantization_config")
    method = section
    if isinstance(section, dict):
        method = section.get("quant_method") or ("mlx" if _is_mlx(section) else None)
    if method == "fp8" and isinstance(section, dict):
        return section.get("weight_block_size") in (None, [128, 128]) and section.get("fmt", "e4m3") in E4M3
    return method in READABLE or (isinstance(section, dict) and not method)  # then tensors tell


def positive_integer(key: str, value: Any, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
        raise ValueError(f"config.json: {key} is {shown(value)}, expected an integer from 1 to {limit}")
    return value


def number(key: str, value: Any, low: float = 1e-12, high: float = 1e12) -> float:
    """A number within bounds that no real config comes near and that no formula overflows in."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"config.json: {key} is {shown(value)}, expected a number from {low:g} to {high:g}")
    return float(value)
