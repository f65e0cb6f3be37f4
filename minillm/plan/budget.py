"""All figures of a plan: bytes, operations and bounds, from a checkpoint's config and a question about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minillm import config
from minillm.guard.files import is_there
from minillm.model.costs import active_values, attention_flops, cached_values, flops, multiplied, state_bytes
from minillm.model.outline import Outline, outline
from minillm.plan.card import CARD, licence
from minillm.plan.cluster import Cluster, Load, splits
from minillm.plan.devices import Device
from minillm.plan.fit import FORMATS, STORED, USABLE_PERCENT, Need, fit, speed
from minillm.plan.memory import held_bytes
from minillm.plan.shares import enough, shares, whole_experts
from minillm.plan.storage import (
    WORDS,
    Section,
    Sizes,
    Stored,
    lists_modules,
    names,
    nbytes,
    section_of,
    sizes,
    stated_bytes,
    stored,
)
from minillm.report import seeing
from minillm.report.examine import Examined, examine
from minillm.weights import ints
from minillm.weights.checkpoint import TensorInfo
from minillm.weights.ints import Int4, Int8
from minillm.weights.rules import Destination
from minillm.weights.tensorfile import BITS

DEFAULT_CONTEXT = 8192  # positions of a sequence, where nobody asks for another number
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
DEFAULT_DTYPE = "bfloat16"
SEES = "the part that sees or hears"
VISION = "vision_config"  # what the config of a model that reads images has


class Question(NamedTuple):
    """What is asked besides the checkpoint. Weights in `dtype`, with matrices in `quantize`: None is as stored."""

    context: int | None = None
    batch: int = 1
    device: Device | None = None
    devices: int = 1
    ranks: int = 1  # processes with a device each that the model is split over
    cluster: Cluster | None = None  # whose devices it is split over in each way
    dtype: str | None = None
    quantize: str | None = None
    int4: Int8 | Int4 = Int4()  # where that is asked for
    image: str | None = None  # a picture's file, or its size


def budget(path: Path, question: Question) -> dict[str, Any]:
    """What the command says of a folder or a config.json; docs/plan.md has the keys. Raises ValueError for what is not
    supported, and for a context that the model is not meant for."""
    found = examine(path)
    report, spec, section = found.report, found.spec, section_of(found.values)
    sketch = outline(spec, torch.bfloat16, whole=found.names is not None or lists_modules(section or {}))
    context = min(spec.context, DEFAULT_CONTEXT) if question.context is None else question.context
    if not 1 <= context <= spec.context:
        raise ValueError(f"--context is {context}, this model takes from 1 to {spec.context}")
    named = names(sketch.rules(found.rules), sketch.model, found.planned, section)
    kept, checkpoint = _checkpoint(found, named, sketch, path)
    dtype = question.dtype or checkpoint["dtype"]
    offered = _formats(named, sketch, question, dtype)
    target = torch.device("cpu" if question.device is None else "cuda")  # which lays matrices out in its own way
    held = held_bytes(found, getattr(torch, dtype), target) if checkpoint["readable"] else None
    chosen = question.quantize or question.dtype or (STORED if kept or held else DEFAULT_DTYPE)
    weights = kept.decoder if kept and chosen == STORED else offered[chosen if chosen in offered else "bfloat16"]
    if held and chosen == STORED:
        weights = Sizes(held, sum(held.values()), weights.file)
    seen = seeing.described(found.values, getattr(torch, dtype))  # which is never quantised, nor split
    beside = seen["bytes"] if seen and question.ranks == 1 else 0
    need = Need(
        spec=spec,
        weights=weights.total + beside,
        others={name: offered[name].total + beside for name in FORMATS},
        context=context,
        batch=question.batch,
        width=BITS[WORDS[dtype]] // 8,
    )
    return {
        "weights": report["weights"],
        "model_type": report["model_type"],
        "parameters": report["parameter_count"],
        "active_parameters": report["active_parameter_count"],
        "max_context": spec.context,
        "quantization": report["quantization"],
        "checkpoint_bytes": checkpoint["bytes"],
        "checkpoint": checkpoint,
        "held_bytes": sum(held.values()) if held else None,
        "formats": {n: {"tensor_bytes": each.total, "file_bytes": each.file} for n, each in offered.items()},
        "kv_bytes_per_token": need.width * cached_values(spec),
        "state_bytes": state_bytes(spec, need.width),
        "kv_bytes_by_context": {str(each): need.cache(each, need.batch) for each in contexts(spec.context)},
        "format": chosen,
        "dtype": dtype,
        "tower": seen,
        "picture": _picture(found, question, path, need),
        **_asked(need, question, sketch, weights),
        "licence": licence(path if path.is_dir() or is_there(path / CARD) else path.parent),
    }


def _picture(found: Examined, question: Question, path: Path, need: Need) -> dict[str, Any] | None:
    """What the picture asked about costs, with its share of the cache."""
    if question.image is None:
        return None
    made = seeing.picture(path, found.values, question.image, torch.float32 if need.width == 4 else torch.bfloat16)
    tokens = made["tokens"] + made["breaks"]
    return {**made, "kv_bytes": need.cache(tokens, 1) - state_bytes(need.spec, need.width)}


def _asked(need: Need, question: Question, sketch: Outline, weights: Sizes) -> dict[str, Any]:
    """What depends on the context, the batch and the device asked about."""
    step, flops = step_bytes(sketch, weights.parameters, need.batch), _flops(sketch, need.context)
    device, count, read = question.device, question.devices, need.read()
    ranks = shares(need, sketch, weights.parameters, question.ranks)
    largest = max(ranks, key=Need.total)
    fitting = None if device is None else fit(largest, device, count if len(ranks) == 1 else 1)
    if fitting is not None and len(ranks) > 1:
        fitting["devices_needed"] = enough(need, sketch, weights.parameters, fitting["usable_bytes"])
    return {
        "context": need.context,
        "batch": need.batch,
        "weight_bytes": need.weights,
        "kv_bytes": need.cache(need.context, need.batch),
        "step_weight_bytes": step,
        "step_cache_bytes": read,
        "flops": flops,
        "device": None if device is None else {**device._asdict(), "count": count, "usable_percent": USABLE_PERCENT},
        "speed": speed(device, count, need.batch, step + read, flops["prefill_per_token"]) if device else None,
        "fit": fitting,
        "splits": _splits(need, question, sketch, weights, flops["prefill_per_token"]),
        "ranks": [
            {
                "weight_bytes": each.weights,
                "kv_bytes": each.cache(each.context, each.batch),
                "whole_experts": whole_experts(each.spec),
            }
            for each in ranks
        ],
    }


def _splits(
    need: Need, question: Question, sketch: Outline, weights: Sizes, flops: float
) -> list[dict[str, Any]] | None:
    """The ways to split a model over the cluster asked about."""
    if question.cluster is None or question.device is None:
        return None
    load = Load(
        need,
        largest=lambda ranks: max(shares(need, sketch, weights.parameters, ranks), key=Need.total),
        step=lambda rows: step_bytes(sketch, weights.parameters, rows),
        flops=flops,
    )
    return splits(load, question.cluster, question.device)


def contexts(limit: int) -> list[int]:
    """The numbers of positions that a cache is shown for: powers of two, which windows are too, and the model's own."""
    return [*(2**power for power in range(7, 31) if 2**power < limit), limit]


def step_bytes(sketch: Outline, weights: Mapping[str, int], rows: int) -> int:
    """Bytes of weights that a decode step of one token in each row reads: `costs.bytes_per_step` of any format."""
    active, parameters = active_values(sketch.model, rows), dict(sketch.model.named_parameters())
    return sketch.total(
        {
            name: size * active[name] // parameters[name].numel()
            for name, size in weights.items()
            if sketch.spec.tied or not name.startswith("embedding.")
        }
    )


def _checkpoint(
    found: Examined, named: Mapping[str, Destination], sketch: Outline, path: Path
) -> tuple[Stored | None, dict[str, Any]]:
    """What the files hold by the config, and how that agrees with the index or with the files themselves."""
    headers = found.checkpoint.files_hold if found.checkpoint else None
    source = "config" if found.names is None else "index" if headers is None else "files"
    stated = stated_bytes(path) if source == "index" else None if headers is None else _of_headers(headers, headers)
    dtype, notes = found.report["dtype"], list[str]()
    if dtype not in WORDS:
        dtype = _most_common(headers or {})
        notes.append(f"config.json states no dtype that is known here; taken as {dtype}")
    readable = found.report["quantization"] is None or config.is_readable(found.values)
    made = {"bytes": stated, "source": source, "stated_bytes": stated, "difference_bytes": None,
            "dtype": dtype, "decoder_bytes": None, "left_out": {}, "outside": None,
            "absent_tensors": 0, "readable": readable, "notes": notes}  # fmt: skip
    try:
        kept = stored(found.values, named, sketch, WORDS[dtype], found.names)
    except ValueError as error:
        if headers is None:  # which say it all
            notes.append(f"{error}: its size is {'not known' if stated is None else 'as the index says'}")
        return None, made
    kept = _with_tower(found, kept, BITS[WORDS[dtype]] // 8)
    derived, outside = kept.decoder.total + sum(kept.left_out.values()), 0
    if kept.outside and headers is not None:
        outside = _of_headers(headers, kept.outside)
    elif kept.outside and stated is not None:
        outside = max(stated - derived, 0)
    elif found.names is None and VISION in found.values and SEES not in kept.left_out:
        notes.append(f"the part that reads images ({VISION}) is not counted: only an index or the files tell its size")
    return kept, made | {
        "bytes": derived + outside,
        "difference_bytes": None if stated is None else stated - derived - outside,
        "decoder_bytes": kept.decoder.total,
        "left_out": kept.left_out,
        "outside": {"tensors": len(kept.outside), "bytes": outside} if kept.outside else None,
        "absent_tensors": len(kept.absent),
    }


def _with_tower(found: Examined, kept: Stored, width: int) -> Stored:
    """The same with a tower that is supported among what is left out, for a reason that is known."""
    names, total = seeing.stored(found.values, found.names, width)
    if found.checkpoint and found.checkpoint.files_hold:
        total = _of_headers(found.checkpoint.files_hold, names)
    outside = [each for each in kept.outside if each not in names]
    return kept._replace(left_out={**kept.left_out, SEES: total}, outside=outside) if total else kept


def _most_common(headers: Mapping[str, TensorInfo]) -> str:
    """The dtype of most values in files, quantised ones aside; without files what most checkpoints have."""
    counts = {word: sum(math.prod(t.shape) for t in headers.values() if t.dtype == WORDS[word]) for word in WORDS}
    return max(counts, key=lambda word: (counts[word], word == DEFAULT_DTYPE))


def _of_headers(headers: Mapping[str, TensorInfo], chosen: Iterable[str]) -> int:
    """What tensors take as they lie."""
    found = {name: headers[name] for name in chosen}
    plain = {name: (each.dtype, each.shape) for name, each in found.items() if each.nbytes is None}
    return nbytes(plain) + sum(each.nbytes or 0 for each in found.values())


def _formats(named: Mapping[str, Destination], sketch: Outline, question: Question, dtype: str) -> dict[str, Sizes]:
    """The decoder as a checkpoint would hold it in each format, what is not quantised in the dtype."""
    word = WORDS[dtype]
    sections: dict[str, tuple[str, Section | None]] = {
        "bfloat16": ("BF16", None),
        "fp8": (word, FP8),
        "int8": (word, ints.written(Int8())),
        "int4": (word, ints.written(question.int4)),
    }
    if question.dtype:
        sections[question.dtype] = (word, None)
    return {name: sizes(named, sketch, *each) for name, each in sections.items()}


def _flops(sketch: Outline, context: int) -> dict[str, Any]:
    """Operations of a prompt of `context` tokens, for each of its tokens on average, and for one more token behind."""
    spec, values = sketch.spec, sketch.total(multiplied(sketch.model))
    prompt = flops(spec, values, context)
    one = flops(spec, values, 1) - attention_flops(spec, 1) + attention_flops(spec, 1, context - 1)
    return {"prefill": prompt, "prefill_per_token": prompt / context, "decode_per_token": one}
