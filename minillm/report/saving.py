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
from minillm.families.gguf import config as gguf_config
from minillm.families.gguf import described as gguf_described
from minillm.families.gguf import limits as gguf_limits
from minillm.families.gguf import states
from minillm.families.gguf import words as gguf_words
from minillm.families.gguf.made import Named, named
from minillm.guard.files import is_there, read_bytes
from minillm.guard.screen import note
from minillm.llm import LLM
from minillm.model.decoder import Decoder
from minillm.model.rope import frequencies
from minillm.report.original import Original, original
from minillm.spec import GQA, Llama3Scaling, MoE, Rope
from minillm.text import chat
from minillm.text.added import listed
from minillm.text.jsonbackend import MAX_BYTES
from minillm.text.tokenizer import Tokenizer
from minillm.weights.gguf import mixtures, writer
from minillm.weights.gguf.reader import SUFFIX
from minillm.weights.rows import Rows

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
    """`write_original` of the checkpoint in `folder`, whose config.json has `values`."""
    return write_original(path, original(folder, values), mixture, progress, bare)


def write_original(
    path: Path,
    given: Original,
    mixture: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    bare: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint as a GGUF file; complete or not at all. One that is `bare` has no words, and all its matrices
    in one kind of blocks: for measuring.

    No more than a few blocks of a tensor are in memory, or one tensor where that is quantised already or lies
    otherwise. Returns the bytes before and after, the bits that a value takes, and how many tensors there are of each
    kind. Raises ValueError for what llama.cpp would compute otherwise.
    """
    file = described(given.plain, given.values, mixture, bare)
    for remark in gguf_limits.remarks(given.plain.spec, file.metadata["general.architecture"]):
        note(remark)
    if not bare:
        file.metadata.update(_words(LLM(given.folder, given.values, given.plain, torch.device("cpu"))))
    if given.towers:
        note(f"{len(given.towers)} tensors that see or hear are left out: the file has the text model alone")
    rows = Rows(given.checkpoint, given.planned)
    entries = [writer.Entry(each.name, each.shape, kind, each.pieces(rows)) for each, kind in file.tensors]
    entries += [writer.Entry(name, tuple(each.shape), "F32", [each]) for name, each in file.factors.items()]
    nbytes, before = writer.write(path, file.metadata, entries, progress), given.checkpoint.nbytes
    kinds = {kind: sum(each == kind for _, each in file.tensors) for _, kind in file.tensors}
    return {"bytes_before": before, "bytes": nbytes, "bits_per_value": file.bits_per_value, "kinds": kinds}


def described(model: Decoder, values: Mapping[str, Any], mixture: str, pure: bool = False) -> File:
    """The file of a plain model, as yet without words. Raises ValueError for what llama.cpp would compute otherwise."""
    spec, architecture = model.spec, gguf_described.architecture(values)
    of_scaling = _of_scaling(next(iter(spec.ropes), None))
    architecture = states.architecture(architecture, spec)
    metadata = gguf_described.metadata(spec, architecture, families.resolve(values)[2].values)
    factors = {
        name: torch.tensor(each) for name, each in gguf_described.factors(spec, architecture, of_scaling).items()
    }
    tensors = named(spec, architecture, model.destinations())
    read = families.resolve(gguf_config.config(metadata, _Shapes(tensors, factors)))[0]
    found = gguf_described.difference(spec, read, of_scaling) or gguf_limits.refusal(spec, architecture)
    if found:
        raise ValueError(f"llama.cpp's {architecture} is another model than this one: {found}; {ELSE}")
    attention, ffns = next(iter(spec.attentions), None), [layer.ffn for layer in spec.layers]
    share = attention.num_heads // attention.num_kv_heads if isinstance(attention, GQA) else 1
    experts = next((each.router.num_experts for each in ffns if isinstance(each, MoE)), 0)
    facts = mixtures.Model(len(spec.layers), experts, share, spec.tied)
    kinds = [(each, mixtures.kind(mixture, each.name, each.shape, facts, pure)) for each in tensors]
    said = {
        "general.type": "model",
        "general.file_type": mixtures.MIXTURES[mixture].file_type,
        "general.quantization_version": QUANTISATION_VERSION,
    }
    return File({**metadata, **said, "tokenizer.ggml.model": "none"}, kinds, factors)


def _of_scaling(rope: Rope | None) -> list[float] | None:
    """The divisor of each frequency, where a rule of scaling that llama.cpp has not amounts to one."""
    if rope is None or not isinstance(rope.scaling, Llama3Scaling):
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
    folder, tokenizer = llm.folder, llm.tokenizer
    if tokenizer is None:
        note("no tokenizer in the checkpoint: the file takes token ids only")
        return {}
    if not is_there(folder / "tokenizer.json"):
        raise ValueError(f"{folder}: a GGUF file is written of a tokenizer.json, and there is only a tokenizer.model; "
                         "save it with transformers' fast tokenizer first")  # fmt: skip
    said, lost = gguf_words.vocabulary(_tokenizer(folder, tokenizer), llm.spec.vocab_size)
    for remark in lost:
        note(f"the tokenizer says what no GGUF file can: {remark}")
    known = {name.removesuffix("_token"): tokenizer.backend.id_of(text) for name, text in tokenizer.special.items()}
    ids = {role: i for role, i in known.items() if i is not None}
    front, behind = _around(tokenizer)
    stops, told, model = sorted(llm.turn_ids), gguf_words.ends_by_text(said), said["tokenizer.ggml.model"]
    said |= gguf_words.roles(ids, front, behind, stops, told, model)
    template, tools = (chat.find(folder, tokenizer.config, each) for each in (False, True))
    said |= {"tokenizer.chat_template": template} if template else {}
    said |= {"tokenizer.chat_template.tool_use": tools} if tools and tools != template else {}
    return said | gguf_words.title(_name(folder), said)


def _tokenizer(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json, which the tokenizers library has read by now, with the tokens that files beside it add."""
    words = json.loads(read_bytes(folder / "tokenizer.json", MAX_BYTES))
    own = words.get("added_tokens") or []
    known = {each["content"] for each in own}
    more = [
        {**flags, "content": text, "id": i}
        for text, _, flags in listed(folder, tokenizer.config)
        if text not in known and (i := tokenizer.backend.id_of(text)) is not None
    ]
    return {**words, "added_tokens": [*own, *more]}


def _name(folder: Path) -> str:
    """What a checkpoint is called: a file, a folder, or a repository in the hub's cache."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name.removesuffix(SUFFIX)


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that are put in front of a text, and behind it."""
    plain, whole = (tokenizer.backend.encode("a", special) for special in (False, True))
    at = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
    return whole[:at], whole[at + len(plain) :]
