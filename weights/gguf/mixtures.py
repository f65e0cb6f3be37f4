"""Which kind of blocks each tensor of a file gets, as llama.cpp chooses them (llama-quant.cpp, MIT).

A file is called by the kind of most of its matrices. Vectors, norms, routers and biases are F32. Of the others the
head, or the embedding that is one, gets Q6_K, and what `RULES` names other kinds; where rows are not made of whole
blocks, a kind with smaller ones takes their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minillm.weights.gguf.writer import BLOCKS

PLAIN = ("F32", "F16", "BF16")
OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"
LAYER = re.compile(r"blk\.(\d+)\.((?:shortconv\.)?\w+)\.weight")
KEPT = (
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "ssm_conv1d",
    "shortconv.conv",
)  # routers, and what llama.cpp convolves with
HALF = (
    "altup",
    "laurel",
    "per_layer_model_proj",
)  # what names begin with of matrices that llama.cpp leaves as they are
SMALLER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # blocks of 32 values in place of 256
VALUES, KEYS, OUT, DOWN = "attn_v attn_qkv attn_kv_b", "attn_k", "attn_output", "ffn_down ffn_down_exps ffn_down_shexp"


@dataclass(frozen=True)
class Mixture:
    """`file_type` is the number of llama.cpp's name for it, which a file says for information."""

    kind: str
    file_type: int


MIXTURES = {
    "f32": Mixture("F32", 0),
    "f16": Mixture("F16", 1),
    "bf16": Mixture("BF16", 32),
    "q8_0": Mixture("Q8_0", 7),
    "q4_0": Mixture("Q4_0", 2),
    "q4_1": Mixture("Q4_1", 3),
    "q5_0": Mixture("Q5_0", 8),
    "q5_1": Mixture("Q5_1", 9),
    "q4_k": Mixture("Q4_K", 14),  # Q4_K_S
    "q5_k": Mixture("Q5_K", 16),  # Q5_K_S
    "q6_k": Mixture("Q6_K", 18),
    "q4_k_m": Mixture("Q4_K", 15),
    "q5_k_m": Mixture("Q5_K", 17),
    "iq4_nl": Mixture("IQ4_NL", 25),
}


@dataclass(frozen=True)
class Model:
    """What the choice depends on: how many layers, experts of a layer and query heads that share a key there are, and
    whether the embedding is the head."""

    layers: int
    experts: int
    share: int
    tied: bool


def _first_eighth(i: int, of: Model) -> bool:
    return i < of.layers // 8


def _outer_and_every_third(i: int, of: Model) -> bool:
    eighth = of.layers // 8
    return i < eighth or i >= 7 * of.layers // 8 or (i - eighth) % 3 == 2


# Mixtures ("*" for all), tensors, which layers of which models, kind. The first that fits counts.
RULES: list[tuple[str, str, Callable[[int, Model], bool], str]] = [
    ("*", f"{VALUES} {KEYS}", lambda i, of: of.experts == 8, "Q8_0"),
    ("q4_k q4_k_m iq4_nl", OUT, lambda i, of: of.experts == 8, "Q5_K"),
    ("q4_k_m q5_k_m", VALUES, _outer_and_every_third, "Q6_K"),
    ("q4_k_m q5_k_m", DOWN, _outer_and_every_third, "Q6_K"),
    ("q4_k", VALUES, lambda i, of: i < 4, "Q5_K"),
    ("q4_k", DOWN, _first_eighth, "Q5_K"),
    ("iq4_nl", VALUES, lambda i, of: of.share >= 4, "Q5_K"),
    ("iq4_nl", DOWN, _first_eighth, "Q5_K"),
    ("q4_k q4_k_m", VALUES, lambda i, of: of.layers == 80 and of.share > 1, "Q5_K"),  # those of 70 billion values
]


def kind(name: str, tensor: str, shape: Sequence[int], of: Model, pure: bool = False) -> str:
    """The kind of a tensor in the mixture of a name; with `pure` that of all matrices is one."""
    base, found = MIXTURES[name].kind, LAYER.fullmatch(tensor)
    part = found[2] if found else ""
    if len(shape) < 2 or not tensor.endswith(".weight") or part.endswith("_norm") or part in KEPT:
        return "F32"
    if base in PLAIN:
        return base
    if (part or tensor).startswith(HALF):
        return "F16"
    if pure:
        return _fitting(base, shape[-1])
    if tensor == OUTPUT or (of.tied and tensor == EMBEDDING):
        whole = shape[-1] % BLOCKS[base].block == 0
        return _fitting("Q6_K" if whole and base != "Q8_0" else "Q8_0", shape[-1])
    layer = int(found[1]) if found else 0
    chosen = (
        made
        for mixtures, parts, where, made in RULES
        if mixtures in ("*", name) or name in mixtures.split()
        if part in parts.split() and where(layer, of)
    )
    return _fitting(next(chosen, base), shape[-1])


def _fitting(kind: str, row: int) -> str:
    """The kind, or one of whose blocks a row of so many values is made."""
    if row % BLOCKS[kind].block:
        kind = SMALLER.get(kind, kind)
    return "F16" if row % BLOCKS[kind].block else kind
