"""From a path or a name to a loaded model: the main path, read from top to bottom in `load`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minillm import config, families, hub, ops
from minillm.adapters.use import identity, use
from minillm.guard.screen import note
from minillm.llm import LLM
from minillm.model import held
from minillm.model.decoder import Decoder, skeleton
from minillm.model.moe import Router
from minillm.ops.device import is_fast, resolve_device, stored_dtype
from minillm.ops.ranks import ALONE, Alone
from minillm.parallel.follow import begin
from minillm.parallel.launch import counted, join
from minillm.parallel.part import part
from minillm.parallel.ranks import TIMEOUT
from minillm.parallel.share import Share
from minillm.weights import foreign, holding, ints
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.formats import refused
from minillm.weights.forms import Segment
from minillm.weights.ints import Int4, Int8, Integers
from minillm.weights.load import check
from minillm.weights.load import load as load_weights
from minillm.weights.rules import Plan

# What may stand in quantization_config and changes nothing here: which modules are plain, the tensors tell themselves,
# and activations are never quantised.
PLAIN_MODULES = {"modules_to_not_convert", "ignored_layers", "ignore"}
QUANTISED = {
    "fp8": {
        "quant_method",
        "fmt",
        "weight_block_size",
        "activation_scheme",
        "scale_fmt",
        "expert_dtype",
        *PLAIN_MODULES,
    },
    "mxfp4": {"quant_method", *PLAIN_MODULES},
}


def load(
    path: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    kernels: ops.Kernels = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
    keep_quantized: bool = True,
    quantize: str | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    revision: str | None = None,
    adapter: str | Path | Mapping[str, str | Path] | None = None,
    ranks: int = 1,
    rank_timeout: float = TIMEOUT,
    stages: int = 1,
    layers: str | None = None,
) -> LLM:
    """Load a checkpoint folder or a Hugging Face id; without one, the demonstration checkpoint of the package.

    Of an id, `revision` (or "org/name@revision") is the branch, tag or commit to take; "main" where none is given.
    `dtype` "auto" is the one the checkpoint is stored in, or float32 where this CPU has no fast arithmetic for it.
    `kernels` "auto" takes the fastest path for the device, "reference" plain PyTorch. Quantised matrices stay as they
    are stored and are multiplied so; without `keep_quantized` they are dequantised while they are read. `quantize`
    "int8" or "int4" makes integers of matrices (`held.integers`), int4 in groups of `group_size`, with zero points
    unless `symmetric`; folders that `minillm.quantize` wrote come so by themselves. `adapter` is the folder of a LoRA
    adapter, or names and folders of several, of which each request chooses (`adapters/use.py`). Of a model over several
    `ranks` this process loads its share, and only the first of them returns from here (`parallel/`); each waits for
    another `rank_timeout` seconds at most. So it is with `stages`, which have some of the layers each, as many as they
    have memory for or as `layers` "20,12" says. Raises ValueError for all faults.
    """
    how = (dtype, kernels, keep_quantized, quantize, group_size, symmetric)
    count = counted(ranks, stages, layers)
    of_stages = count // ranks
    group, place = (ALONE, device) if count == 1 else join(count, resolve_device(device), rank_timeout, of_stages)
    laid = lay_out(path, dtype, place, *how[1:], revision, group, layers)
    llm = filled(laid, progress)
    if adapter is not None:
        use(llm, adapter, share=laid.share)
    if count > 1:
        folders = adapter.values() if isinstance(adapter, Mapping) else [] if adapter is None else [adapter]
        begin(laid.model, group, f"{how} {laid.values} {laid.checkpoint.info} {[*map(identity, folders)]}")
    say(laid)  # now: a load that fails says one thing only
    return llm


Taken = Callable[[Decoder, Checkpoint, Plan], tuple[Checkpoint, Plan]]


def filled(laid: Laid, progress: Callable[[int, int], None], taken: Taken | None = None) -> LLM:
    """The model with its weights, or with those that are `taken` of the checkpoint."""
    read = (laid.checkpoint, laid.planned) if taken is None else taken(laid.model, laid.checkpoint, laid.planned)
    named = dict(laid.model.named_parameters())
    parameters = load_weights(*read, named, laid.device, progress, laid.formats, laid.stay)
    laid.model.load_state_dict(parameters, assign=True)
    for name, module in laid.model.named_modules():
        if isinstance(module, Router):
            module.check(name)
    laid.model.requires_grad_(False).eval()
    return LLM(laid.folder, laid.values, laid.model, laid.device)


class Laid(NamedTuple):
    """A checkpoint before any of its weights is read: the parameters of `model` are on the meta device, in the forms
    that they will have."""

    folder: Path
    values: dict[str, Any]
    model: Decoder
    device: torch.device
    checkpoint: Checkpoint
    planned: Plan
    formats: Mapping[str, Integers]
    stay: Mapping[str, tuple[Segment, ...]]
    unread: Sequence[str]
    said: Sequence[str]
    slow: torch.dtype | None  # what it is stored in, where this CPU has no fast arithmetic for it
    share: Share | None = None  # of what all ranks have together

    @property
    def nbytes(self) -> int:
        """What its weights take in memory."""
        return sum(each.nbytes for each in self.model.parameters())


def lay_out(
    path: str | Path | None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    kernels: ops.Kernels = "auto",
    keep_quantized: bool = True,
    quantize: str | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    revision: str | None = None,
    ranks: Alone = ALONE,
    layers: str | None = None,
) -> Laid:
    """All of `load` but the reading of weights; takes and raises what it does."""
    folder = hub.resolve(path, revision=revision)
    values = config.read(folder)
    written = integers(folder, values)
    scheme = asked_scheme(quantize, group_size, symmetric)
    if scheme and written:
        raise ValueError(f"{folder}: --quantize (quantize), but its weights are integers already; leave that out")
    values, checkpoint = opened(folder, values)
    spec, rules, read = families.resolve(values)
    target = resolve_device(device)
    wanted = stored_dtype(dtype, read.dtype, checkpoint.dtype)
    slow = dtype == "auto" and not is_fast(wanted, target)
    chosen = torch.float32 if slow else wanted
    model = skeleton(spec, chosen, ops.select(kernels, target, chosen))
    planned = checkpoint.plan(rules, model.destinations())
    said = fits(planned, checkpoint, values)
    share = None
    if ranks.count > 1:
        model, checkpoint, planned, share = part(model, checkpoint, planned, ranks, target, layers)
    formats = held.integers(model, scheme) if scheme else {}
    stay = _hold(model, checkpoint, planned, formats, said) if keep_quantized or scheme else {}
    stored = wanted if slow else None
    return Laid(folder, values, model, target, checkpoint, planned, formats, stay, read.unread, said, stored, share)


def _hold(
    model: Decoder, checkpoint: Checkpoint, planned: Plan, formats: Mapping[str, Integers], said: list[str]
) -> dict[str, tuple[Segment, ...]]:
    """Lay the parameters that stay quantised out so, which are those of `formats` where it has any; returns which they
    are, and adds to what users are told."""
    shapes = {name: shape for name, shape in held.holdable(model).items() if not formats or name in formats}
    stay = dict(holding.segments(checkpoint, planned, shapes, model.dtype, model.ops.tile, formats))
    said += [] if formats else holding.told(checkpoint, planned, shapes, stay)
    held.hold(model, stay)
    return stay


def opened(folder: Path, values: dict[str, Any]) -> tuple[dict[str, Any], Checkpoint]:
    """The files of a checkpoint, and its config with the head that they have: its own, whatever `tie_word_embeddings`
    says, where one is stored that is not the embedding."""
    spec, _, _ = families.resolve(values)
    checkpoint = Checkpoint(folder, values.get("quantization_config"))
    if spec.tied and (head := families.own_head(values, checkpoint)):
        note(f"{head} is not the embedding, though tie_word_embeddings is true: the model has this head")
        values = families.untied(values)
    return values, checkpoint


def fits(planned: Plan, checkpoint: Checkpoint, values: dict[str, Any]) -> list[str]:
    """Raise one ValueError where the tensors are not those of the model; returns what users are told of them."""
    faultless = not (planned.unclaimed or planned.twice_filled)
    if faultless and families.HEAD in planned.unfilled and set(planned.unfilled) <= {families.HEAD, families.HEAD_BIAS}:
        raise ValueError(
            f"{checkpoint.folder}: no lm_head in the weights, and tie_word_embeddings is false; this is the body of a "
            "model, an embedding model perhaps: give a checkpoint that generates text, or set tie_word_embeddings to "
            "true in config.json if its head is the embedding"
        )
    check(planned, checkpoint)
    return _quantised_as_said(values, checkpoint)


def _quantised_as_said(values: dict[str, Any], checkpoint: Checkpoint) -> list[str]:
    """What users are told where quantization_config says other things than the tensors, or some that are not followed.
    Raises ValueError where the two contradict each other."""
    section, method = values.get("quantization_config") or {}, config.quantization(values)
    found = {each.format for each in checkpoint.info.values() if each.format}
    said = {"fp8": {"FP8"}, "mxfp4": {"MXFP4"}}.get(str(method))
    if said and "fp4" in (values.get("expert_dtype"), section.get("expert_dtype")):  # of experts alone
        said |= {"MXFP4", "NVFP4"}
    if said and found - said:
        raise ValueError(
            f"config.json: quantization_config says {method}, but there are {' and '.join(sorted(found - said))} "
            "tensors; download both again from one place"
        )
    notes = []
    if found and method is None:
        notes.append(f"config.json has no quantization_config: tensors with factors are read as {', '.join(found)}")
    if method not in (None, ints.METHOD, "gguf") and not found:
        notes.append(f"quantization_config says {method}, but no tensor is: the weights are read as they are stored")
    unread = sorted(set(section) - QUANTISED[method]) if method in QUANTISED else []
    if section.get("activation_scheme", "dynamic") != "dynamic" and not checkpoint.idle:  # else these are spoken of
        unread.append(f"activation_scheme {section['activation_scheme']!r}")
    if method in QUANTISED and unread:
        notes.append(f"config.json keys of quantization_config not understood and ignored: {', '.join(unread)}")
    if idle := len(checkpoint.idle):
        notes.append(f"{idle} tensors left out: they quantise activations, which stay as they are")
    return notes


def say(laid: Laid) -> None:
    """What there is to note of a checkpoint."""
    if other := foreign.instead_of_tokenizer(laid.folder):
        note(f"no tokenizer.json: {other}")
    if laid.unread:
        note(f"config.json keys not understood and ignored: {', '.join(laid.unread)}")
    for each in laid.said:
        note(each)
    for reason, count in laid.planned.reasons.items():
        note(f"{count} tensors left out: {reason}")
    for wrapper, count in laid.planned.wrappers.items():
        note(f"{count} tensors have names with {wrapper!r} in front, which a wrapper put there: read without it")
    if laid.slow:
        note(f"this CPU has no fast {str(laid.slow).removeprefix('torch.')} arithmetic: running in float32")


def asked_scheme(quantize: str | None, group_size: int | None, symmetric: bool) -> Int8 | Int4 | None:
    """What to quantise to. Raises ValueError where details are given without it."""
    if quantize is not None:
        return ints.scheme(quantize, group_size, symmetric)
    if group_size is not None or not symmetric:
        raise ValueError("--group-size and --asymmetric (group_size, symmetric) go with --quantize int4 (quantize)")
    return None


def integers(folder: Path, values: dict[str, Any]) -> Int8 | Int4 | None:
    """The integers that a folder was written with by `minillm.quantize`; None for any other. Raises ValueError for one
    that is quantised as this project cannot read it."""
    section, scheme = values.get("quantization_config"), config.quantization(values)
    if section is not None and not isinstance(section, dict):
        raise ValueError(f"config.json: quantization_config is {repr(section)[:40]}, expected an object or null")
    if not scheme or config.is_readable(values):
        return ints.read(section or {})
    if scheme == "fp8" and section:
        found = ", ".join(f"{key} {section.get(key)}" for key in ("weight_block_size", "fmt"))
        scheme = f"fp8 of {found} (supported: [128, 128] and e4m3)"
    raise ValueError(f"{folder}: {refused.remedy(scheme)}")
