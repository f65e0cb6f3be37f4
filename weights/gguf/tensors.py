"""The tensors of a GGUF file as a checkpoint has them: read where they lie and dequantised in pieces.

Names and order of rows stay the file's own, which the rules of a family know. What differs is what no rule can say:

    X_exps.weight [E, …]       all experts of a layer: one tensor for each, X.E.weight, as old files have them; of
                               ffn_gate_up_exps two, ffn_gate and ffn_up
    altup_proj.weight [S, …]   and altup_unembd_proj of several residual streams: likewise
    attn_k_b [heads, R, nope]  and attn_v_b [heads, V, R]: one matrix attn_kv_b [heads (nope + V), R]
    X.scale [1] or [E]         a factor of X.weight (NVFP4), but for the router's ffn_gate_inp and for ffn_down_exps
                               where the config's section says `scales_apart`: tensors of their own
    X.input_scale              quantises activations, which stay as they are
    norms                      to which a converter has added what the config's section calls `norm_offset`, but for
                               those inside a recurrent layer
    ssm_a [H]                  -e^A of what a state forgets: A
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from minillm.weights.formats.packed import Made, Packed, Section
from minillm.weights.forms import ByRows, Packing, Shapes
from minillm.weights.gguf.kinds import Kind
from minillm.weights.gguf.reader import Contents, Entry
from minillm.weights.grouped import Fields
from minillm.weights.source import InFile, Source

PIECE = 2**18  # values dequantised at a time: a multiple of every block
STACKS = re.compile(r"(.*)_exps\.(weight|bias)|(altup_(?:unembd_)?proj)\.(weight)")
ONE_OF = re.compile(r"(.*\.ffn_(?:gate|up|down)|altup_(?:unembd_)?proj)\.(\d+)\.(weight|bias)")
GATE_UP = "ffn_gate_up"
APART = ("ffn_gate_inp.scale", "ffn_down_exps.scale")
K_UP, V_UP, KV_UP = "attn_k_b.weight", "attn_v_b.weight", "attn_kv_b.weight"
WEIGHT, FACTOR, IDLE, NORM = ".weight", ".scale", ".input_scale", "norm.weight"
WITHIN, DECAY = "ssm_norm.weight", ".ssm_a"
LATENT = "keys and values of latent attention"


@dataclass(frozen=True)
class InBlocks:
    """A tensor with the methods of `source.InFile`: fp32 numbers, times a factor and less an offset."""

    source: Source
    kind: Kind
    shape: tuple[int, ...]
    start: int
    nbytes: int
    factor: float = 1.0
    offset: float = 0.0
    word: ClassVar[str] = "F32"
    dtype: ClassVar[torch.dtype] = torch.float32

    @property
    def title(self) -> str:
        return self.kind.name

    def fresh(self) -> InBlocks:
        """The same tensor, nothing of which has been read."""
        return self

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start … stop - 1."""
        stop = math.prod(self.shape) if stop is None else stop
        made = torch.empty(stop - start, dtype=torch.float32, device="cpu")
        self.fill(made, start)
        return made

    def fill(self, into: Tensor, start: int = 0) -> None:
        """Write into a contiguous tensor, which says how many values from `start` on."""
        flat = into.view(-1)
        at, stop = start, start + flat.numel()
        while at < stop:
            end = min(stop, at - at % PIECE + PIECE)
            flat[at - start : end - start] = self._piece(at, end)
            at = end

    def _piece(self, start: int, stop: int) -> Tensor:
        kind = self.kind
        first, last = start // kind.block, -(-stop // kind.block)
        values = kind.dequantise(self._blocks(first, last)).view(-1)
        values = values[start - first * kind.block : stop - first * kind.block]
        values = values if self.factor == 1.0 else values * self.factor
        return values if self.offset == 0.0 else values - self.offset

    def _blocks(self, first: int, last: int) -> Tensor:
        """Blocks first … last - 1 as they lie, uint8 `[N, bytes]`."""
        raw = torch.empty(last - first, self.kind.nbytes, dtype=torch.uint8, device="cpu")
        self.source.fill(raw, self.start + first * self.kind.nbytes)
        return raw

    @property
    def form(self) -> Packing | None:
        """What the rows of a matrix can stay in; None for what is no matrix, or has blocks across rows."""
        kind = self.kind
        if len(self.shape) != 2 or self.shape[1] % kind.block or self.offset or kind.plain:
            return None
        if kind.form is None:
            return None if self.factor != 1.0 else Blocks(kind)
        if self.factor == 1.0:
            return kind.form
        return None if kind.form.factor else replace(kind.form, factor=torch.float32, span=0)

    def fields(self, start: int, stop: int) -> Fields:
        """Rows start … stop - 1 as they go into the form."""
        kind, per_row = self.kind, self.shape[1] // self.kind.block
        raw = self._blocks(start * per_row, stop * per_row)
        if kind.read is None:
            return Fields(raw.view(stop - start, -1))
        made = kind.read(raw).map(lambda values: values.reshape(stop - start, -1))
        return made if self.factor == 1.0 else replace(made, factor=torch.full((stop - start, 1), self.factor))


@dataclass(frozen=True)
class Blocks(ByRows):
    """The form of blocks that stay as they lie in the file, and are dequantised each time."""

    kind: Kind

    def parts(self, shape: tuple[int, ...]) -> Shapes:
        """Shape and type of each part of matrices `[..., O, I]`."""
        return {"": ((*shape[:-1], shape[-1] // self.kind.block * self.kind.nbytes), torch.uint8)}

    def values(self, fields: Fields) -> Tensor:
        """fp32 `[O, I]`."""
        return self.kind.dequantise(fields.q.reshape(-1, self.kind.nbytes)).view(len(fields.q), -1)


Stored = InFile | InBlocks | Made


def tensors(contents: Contents, section: Section) -> tuple[dict[str, Stored], list[str]]:
    """All tensors by name, in the order of the file, and the names of those without effect. Raises ValueError for
    tensors that should go together and do not."""
    entries, offset = contents.entries, float(section.get("norm_offset", 0.0))
    idle = [name for name in entries if name.endswith(IDLE) and name.removesuffix(IDLE) + WEIGHT in entries]
    factors = {
        matrix: _factor(entries, name, matrix)
        for name in entries
        if name.endswith(FACTOR) and (matrix := name.removesuffix(FACTOR) + WEIGHT) in entries
        if not (section.get("scales_apart") and name.endswith(APART))
    }
    found: dict[str, Stored] = {}
    for name, entry in entries.items():
        if name in idle or (name.endswith(FACTOR) and name.removesuffix(FACTOR) + WEIGHT in factors):
            continue
        factor, subtracted = factors.get(name), offset if shifted(name) else 0.0
        if (stack := STACKS.fullmatch(name)) and len(entry.shape) > 1:
            of, kind = stack[1] or stack[3], stack[2] or stack[4]
            for e, part in enumerate(_experts(entry)):
                one = 1.0 if factor is None else factor[e if len(factor) > 1 else 0]
                for to, piece in _halves(of, part):
                    found[f"{to}.{e}.{kind}"] = stored(piece, one)
        else:
            found[name] = stored(entry, 1.0 if factor is None else factor[0], subtracted)
    return _joined(found, entries), idle


def shifted(name: str) -> bool:
    """Whether it is a norm that a converter adds `norm_offset` to."""
    return name.endswith(NORM) and not name.endswith(WITHIN)


def stored(entry: Entry, factor: float = 1.0, offset: float = 0.0) -> InFile | InBlocks:
    """A tensor as it is read: straight, where PyTorch has its type."""
    source, kind, shape, start, nbytes = entry.source, entry.kind, entry.shape, entry.start, entry.nbytes
    if kind.plain and (factor, offset) == (1.0, 0.0):
        return InFile(source, kind.plain, shape, start, nbytes)
    return InBlocks(source, kind, shape, start, nbytes, factor, offset)


def _factor(entries: Mapping[str, Entry], name: str, matrix: str) -> list[float]:
    factor, of = entries[name], entries[matrix]
    counts = {1, of.shape[0]} if len(of.shape) == 3 else {1}
    if factor.kind.plain != "F32" or len(factor.shape) != 1 or factor.shape[0] not in counts:
        kind, shape = factor.kind.name, list(factor.shape)
        raise ValueError(f"{name} is {kind} {shape}; the factor of {matrix} {list(of.shape)} is F32 [1]")
    values = stored(factor).values().tolist()
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{name} has values that no factor has; download it again")
    return values


def _experts(entry: Entry) -> list[Entry]:
    count, nbytes = entry.shape[0], entry.nbytes // entry.shape[0]
    places = [entry.start + e * nbytes for e in range(count)]
    return [Entry(entry.source, entry.kind, entry.shape[1:], place, nbytes) for place in places]


def _halves(name: str, entry: Entry) -> list[tuple[str, Entry]]:
    """Of a matrix that has the rows of gate and up, one below the other, both; any other as it is."""
    if not name.endswith(GATE_UP):
        return [(name, entry)]
    rows, nbytes = entry.shape[0] // 2, entry.nbytes // 2
    if entry.shape[0] % 2:
        raise ValueError(f"{name}_exps has {entry.shape[0]} rows an expert, which are no two equal halves")
    halves = [replace(entry, shape=(rows, *entry.shape[1:]), start=entry.start + i * nbytes, nbytes=nbytes)
              for i in range(2)]  # fmt: skip
    return list(zip((name.replace("_gate_up", part) for part in ("_gate", "_up")), halves, strict=True))


def stack(name: str) -> str | None:
    """The tensor that one of several equal ones is a part of in a file; None for what stands alone."""
    if (one := ONE_OF.fullmatch(name)) is None:
        return None
    return f"{one[1]}.{one[3]}" if one[1].startswith("altup") else f"{one[1]}_exps.{one[3]}"


def _joined(found: dict[str, Stored], entries: Mapping[str, Entry]) -> dict[str, Stored]:
    """With keys and values of latent attention as one matrix, where its keys stand."""
    made: dict[str, Stored] = {}
    for name, each in found.items():
        layer = name.removesuffix(K_UP)
        if name.endswith(DECAY):
            made[name] = Made(Packed("a decay", each.shape, {"values": name}, _decay), {"values": each})
            continue
        if name.endswith(V_UP) and name.removesuffix(V_UP) + K_UP in found:
            continue
        if not name.endswith(K_UP):
            made[name] = each
            continue
        if (values := found.get(layer + V_UP)) is None:
            raise ValueError(f"{layer}{V_UP} is missing, without which {name} is of no use; download it again")
        if len(each.shape) != 3 or len(values.shape) != 3 or each.shape[:2] != (values.shape[0], values.shape[2]):
            raise ValueError(f"{name} {list(each.shape)} and {layer}{V_UP} {list(values.shape)} do not fit")
        heads, rank, nope = each.shape
        shape, parts = (heads * (nope + values.shape[1]), rank), {"keys": name, "values": layer + V_UP}
        held: dict[str, Any] = {"keys": each, "values": values}
        made[layer + KV_UP] = Made(Packed(LATENT, shape, parts, _up), held)
    return made


def _decay(parts: Mapping[str, Tensor]) -> Tensor:
    """The A of -e^A; a value that is none of one would be no number."""
    values = parts["values"].float()
    if not (values < 0).all():
        raise ValueError("ssm_a has values that are not below 0; download the file again")
    return (-values).log()


def _up(parts: Mapping[str, Tensor]) -> Tensor:
    """Of each head the rows of keys, which lie as columns, and then those of values."""
    return torch.cat((parts["keys"].float().transpose(1, 2), parts["values"].float()), dim=1).flatten(0, 1)
