"""From a checkpoint to the file that llama.cpp runs it from: the way of `loading.py`, and back out.

Tensors have llama.cpp's names and lie as its converter has them. Before anything is written the description of the file
is read as if it were there: what would be another decoder is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import families
from minillm.families.shared import gguf_config, gguf_described, gguf_limits, gguf_words
from minillm.families.shared.gguf_made import Named, named
from minillm.guard.screen import note
from minillm.llm import LLM
from minillm.loading import fits, integers, opened
from minillm.model import held
from minillm.model.decoder import Decoder, skeleton
from minillm.model.rope import frequencies
from minillm.spec import MLA, Llama3Scaling, MoE, Rope
from minillm.text import chat
from minillm.text.jsonbackend import JsonBackend
from minillm.weights.gguf import mixtures, writer
from minillm.weights.rows import Rows
from minillm.weights.rules import plan

QUANTISATION_VERSION = 2  # of llama.cpp's layouts of blocks
ELSE = "change config.json if that is what you want, or keep a folder, with --quantize int8 or int4"


@dataclass(frozen=True)
class File:
    """A file before it is written: tensors with the kinds of their blocks, and factors of frequencies."""

    metadata: dict[str, Any]
    tensors: list[tuple[Named, str]]
    factors: dict[str, Tensor]

    @property
    def bits_per_value(self) -> float:
        """Of all weights."""
        sizes = [(torch.Size(each.shape).numel(), writer.nbytes(kind, each.shape)) for each, kind in self.tensors]
        return 8 * sum(nbytes for _, nbytes in sizes) / sum(count for count, _ in sizes)


def write_gguf(
    path: Path,
    folder: Path,
    values: Mapping[str, Any],
    mixture: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    bare: bool = False,
) -> dict[str, Any]:
    """Write the checkpoint in `folder`, whose config.json has `values`, as a GGUF file; complete or not at all. One that
    is `bare` has no words, and all its matrices in one kind of blocks: for measuring.

    No more than a few blocks of a tensor are in memory, or one tensor where that is quantised already or lies
    otherwise. Returns the bytes before and after, the bits that a value takes, and how many tensors there are of each
    kind. Raises ValueError for a checkpoint that cannot be loaded, and for what llama.cpp would compute otherwise.
    """
    written = integers(folder, dict(values))
    values, checkpoint = opened(folder, dict(values))
    spec, rules, _ = families.resolve(values)
    model, plain = skeleton(spec, torch.float32), skeleton(spec, torch.float32)
    formats = written.formats(model) if written else {}
    held.hold(model, formats)
    planned = plan(checkpoint.info, rules, model.destinations())
    for each in fits(planned, checkpoint, values):
        note(each)
    file = described(plain, values, mixture, bare)
    if not bare:
        file.metadata.update(_words(LLM(folder, values, plain, torch.device("cpu"))))
    rows = Rows(checkpoint, planned, {n: (form, plain.get_parameter(n).shape[-1]) for n, form in formats.items()})
    entries = [writer.Entry(each.name, each.shape, kind, each.pieces(rows)) for each, kind in file.tensors]
    entries += [writer.Entry(name, tuple(each.shape), "F32", [each]) for name, each in file.factors.items()]
    nbytes = writer.write(path, file.metadata, entries, progress)
    kinds = {kind: sum(each == kind for _, each in file.tensors) for _, kind in file.tensors}
    return {"bytes_before": checkpoint.nbytes, "bytes": nbytes, "bits_per_value": file.bits_per_value, "kinds": kinds}


def described(model: Decoder, values: Mapping[str, Any], mixture: str, pure: bool = False) -> File:
    """The file of a plain model, as yet without words. Raises ValueError for what llama.cpp would compute otherwise."""
    spec, architecture = model.spec, gguf_described.architecture(values)
    of_scaling = _of_scaling(spec.layers[0].attention.rope)
    metadata = gguf_described.metadata(spec, architecture, values)
    factors = {name: torch.tensor(each) for name, each in gguf_described.factors(spec, of_scaling).items()}
    tensors = named(spec, architecture, model.destinations())
    read = families.resolve(gguf_config.config(metadata, _Shapes(tensors, factors)))[0]
    found = gguf_described.difference(spec, read, of_scaling) or gguf_limits.refusal(spec, architecture)
    if found:
        raise ValueError(f"llama.cpp's {architecture} is another model than this one: {found}; {ELSE}")
    for remark in gguf_limits.remarks(spec, architecture):
        note(remark)
    attention, ffns = spec.layers[0].attention, [layer.ffn for layer in spec.layers]
    share = 1 if isinstance(attention, MLA) else attention.num_heads // attention.num_kv_heads
    experts = next((each.router.num_experts for each in ffns if isinstance(each, MoE)), 0)
    facts = mixtures.Model(len(spec.layers), experts, share, spec.tied)
    kinds = [(each, mixtures.kind(mixture, each.name, each.shape, facts, pure)) for each in tensors]
    said = {
        "general.type": "model",
        "general.file_type": mixtures.MIXTURES[mixture].file_type,
        "general.quantization_version": QUANTISATION_VERSION,
    }
    return File({**metadata, **said, "tokenizer.ggml.model": "none"}, kinds, factors)


def _of_scaling(rope: Rope) -> list[float] | None:
    """The divisor of each frequency, where a rule of scaling that llama.cpp has not amounts to one."""
    if not isinstance(rope.scaling, Llama3Scaling):
        return None
    return (frequencies(Rope(rope.dim, rope.theta), 0) / frequencies(rope, 0)).tolist()


class _Shapes:
    """The tensors of a file that is not there yet, for who reads its description."""

    def __init__(self, tensors: list[Named], factors: Mapping[str, Tensor]):
        self.shapes = {each.name: each.shape for each in tensors} | {n: tuple(f.shape) for n, f in factors.items()}
        self.factors = factors

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.shapes.get(name)

    def values(self, name: str) -> list[float]:
        return self.factors[name].tolist()

    def kinds(self) -> Mapping[str, int]:
        return {"F32": 1}


def _words(llm: LLM) -> dict[str, Any]:
    """The metadata of a checkpoint's tokenizer and chat templates. Raises ValueError for what no file can hold."""
    if (tokenizer := llm.tokenizer) is None:
        note("no tokenizer in the checkpoint: the file takes token ids only")
        return {}
    backend = tokenizer.backend
    if not isinstance(backend, JsonBackend) or backend.unusual is not None:
        why = backend.unusual if isinstance(backend, JsonBackend) else "there is only a tokenizer.model"
        raise ValueError(f"{llm.folder}: a GGUF file is written of a usual tokenizer.json, but {why}; "
                         "save it with transformers' fast tokenizer first")  # fmt: skip
    said, lost = gguf_words.vocabulary(json.loads(backend.encoding.tokenizer.to_str()), llm.spec.vocab_size)
    for remark in lost:
        note(f"the tokenizer says what no GGUF file can: {remark}")
    ids = {name.removesuffix("_token"): i for name, text in tokenizer.special.items()
           if (i := backend.id_of(text)) is not None}  # fmt: skip
    front, behind = _around(tokenizer.backend)
    said |= gguf_words.roles(ids, front, behind, sorted(llm.turn_ids), gguf_words.ends_by_text(said))
    template, tools = (chat.find(llm.folder, tokenizer.config, each) for each in (False, True))
    said |= {"tokenizer.chat_template": template} if template else {}
    return said | ({"tokenizer.chat_template.tool_use": tools} if tools and tools != template else {})


def _around(backend: JsonBackend) -> tuple[list[int], list[int]]:
    """The ids that are put in front of a text, and behind it."""
    text = "a"
    plain, whole = (backend.encode(text, special) for special in (False, True))
    at = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
    return whole[:at], whole[at + len(plain) :]
