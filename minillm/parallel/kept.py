"""Which rows and columns of each parameter of the whole model a rank has, of the split in `split.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minillm import spec
from minillm.parallel.split import Span, cut, owned, whole_experts
from minillm.spec import (
    GQA,
    MLA,
    MLP,
    AddedConv,
    Beside,
    ChannelDelta,
    Compressed,
    Decoder,
    Fronted,
    GatedConv,
    GatedDeltaNet,
    GatedMLP,
    GatedRecurrence,
    MoE,
    SelectiveScan,
    StateSpace,
)


@dataclass(frozen=True)
class Kept:
    """Rows of a parameter, those of all experts one under the other, and columns of each; None is all. A parameter that
    is `absent` is all zeros, as what it adds is added by another rank."""

    rows: tuple[Span, ...] | None = None
    columns: Span | None = None
    absent: bool = False


def kept(decoder: Decoder, ranks: int, rank: int) -> dict[str, Kept]:
    """The parameters of the whole model of which a rank has a part, and which."""
    vocabulary = Kept((cut(decoder.vocab_size, ranks, rank),))
    found = {} if decoder.embedding.rows is not None else {"embedding.weight": vocabulary}
    if not decoder.tied:
        found |= {"head.weight": vocabulary, "head.bias": vocabulary}
    for index, layer in enumerate(decoder.layers):
        for part, made in (("attention", layer.attention), ("ffn", layer.ffn)):
            more = ((made.latent or decoder.hidden_size),) if isinstance(made, MoE) else ()
            leaves = PARTS[type(made)](made, ranks, rank, *more) if made is not None else {}
            found |= {f"layers.{index}.{part}.{leaf}": each for leaf, each in leaves.items()}
    return found


def _under(*parts: tuple[int, Span, int]) -> Kept:
    """Of parts one under the other, each of so many things: those of a span, of so many rows each."""
    found, at = [], 0
    for count, (first, end), each in parts:
        found.append((at + first * each, at + end * each))
        at += count * each
    return Kept(tuple(found))


def _beside(span: Span, each: int = 1) -> Kept:
    """Columns."""
    return Kept(columns=(span[0] * each, span[1] * each))


def _once(rank: int) -> Kept:
    """What is added behind a sum, by one rank."""
    return Kept(absent=rank > 0)


def _of_gqa(made: GQA, ranks: int, rank: int) -> dict[str, Kept]:
    q, kv = owned(made, ranks, rank).values()
    size, count, groups = made.head_dim, made.num_heads, made.num_kv_heads
    parts = [(count, q, 2 * size if made.gate and made.gate.with_q else size)]
    if made.kv.layer is None:
        parts += [(groups, kv, size), *([] if made.kv.v_is_k else [(groups, kv, made.v_dim)])]
    rows = _under(*parts)
    found = {"qkv.weight": rows, "qkv.bias": rows, "out.weight": _beside(q, made.v_dim), "out.bias": _once(rank)}
    if made.qk_norm and made.qk_norm.width == "all":
        found |= {"q_norm.weight": _under((count, q, size)), "k_norm.weight": _under((groups, kv, size))}
    if made.qk_norm and made.qk_norm.width == "heads":
        of_q, of_k = _under((count, q, 1)), _under((groups, kv, 1))
        found |= {"q_norm.weight": of_q, "q_norm.bias": of_q, "k_norm.weight": of_k, "k_norm.bias": of_k}
    if made.indexer is not None:  # a head for each kv head
        found["indexer.q.weight"] = _under((groups, kv, made.indexer.head_dim))
    gate = _under((count, q, 1 if made.gate and made.gate.width == "head" else made.v_dim))
    return found | {"sinks": _under((count, q, 1)), "gate.weight": gate}


def _of_mla(made: MLA, ranks: int, rank: int) -> dict[str, Kept]:
    (own,), count = owned(made, ranks, rank).values(), made.num_heads
    return {
        "q.weight": _under((count, own, made.nope_dim + made.rope.dim)),
        "kv_up": _under((count, own, made.nope_dim + made.v_dim)),
        "out.weight": _beside(own, made.v_dim),
        "out.bias": _once(rank),
        "sinks": _under((count, own, 1)),
        "gate.weight": _under((count, own, 1 if made.gate and made.gate.width == "head" else made.v_dim)),
    }


def _of_delta(made: GatedDeltaNet, ranks: int, rank: int) -> dict[str, Kept]:
    v, k = owned(made, ranks, rank).values()
    keys, values, gate = (made.num_k_heads, k, made.k_dim), (made.num_v_heads, v, made.v_dim), (made.num_v_heads, v, 1)
    return {
        "qkvz.weight": _under(keys, keys, values, values),
        "ba.weight": _under(gate, gate),
        "conv.weight": _under(keys, keys, values),
        "decay": _under(gate),
        "step": _under(gate),
        "output.weight": _beside(v, made.v_dim),
    }


def _of_channels(made: ChannelDelta, ranks: int, rank: int) -> dict[str, Kept]:
    """What goes through a few values each rank has whole up to there."""
    (own,) = owned(made, ranks, rank).values()
    inner, number = (made.num_heads, own, made.head_dim), (made.num_heads, own, 1)
    down = (made.rank, (0, made.rank), 1) if made.rank else inner
    return {
        "qkvfzb.weight": _under(inner, inner, inner, down, down, number),
        **dict.fromkeys(("f.weight", "z.weight", "step"), _under(inner)),
        "conv.weight": _under(inner, inner, inner),
        "decay": _under(number),
        "output.weight": _beside(own, made.head_dim),
    }


def _of_conv(made: GatedConv, ranks: int, rank: int) -> dict[str, Kept]:
    (own,), size = owned(made, ranks, rank).values(), made.channels
    rows = (size, own, 1)
    return {"bcu.weight": _under(rows, rows, rows), "conv": _under(rows), "output.weight": _beside(own)}


def _of_space(made: StateSpace, ranks: int, rank: int) -> dict[str, Kept]:
    own, shared = owned(made, ranks, rank).values()
    inner, number = (made.num_heads, own, made.head_dim), (made.num_heads, own, 1)
    group = (made.num_groups, shared, made.state_size)
    rows, seen = _under(inner, inner, group, group, number), _under(inner, group, group)
    return {
        **dict.fromkeys(("zxbcd.weight", "zxbcd.bias"), rows),
        **dict.fromkeys(("conv.weight", "conv.bias"), seen),
        **dict.fromkeys(("decay", "step", "skip"), _under(number)), "norm": _under(inner),
        "output.weight": _beside(own, made.head_dim), "output.bias": _once(rank),
    }  # fmt: skip


def _of_selective(made: SelectiveScan, ranks: int, rank: int) -> dict[str, Kept]:
    """The second product goes over all channels, and so do the norms of what it makes: their ranks' parts are added."""
    (own,), size = owned(made, ranks, rank).values(), made.channels
    rows = (size, own, 1)
    return {
        **dict.fromkeys(("xz.weight", "xz.bias"), _under(rows, rows)),
        **dict.fromkeys(("conv.weight", "conv.bias", "step.weight", "step.bias", "skip"), _under(rows)),
        **dict.fromkeys(("dbc.weight", "decay", "output.weight"), _beside(own)), "output.bias": _once(rank),
    }  # fmt: skip


def _of_recurrence(made: GatedRecurrence, ranks: int, rank: int) -> dict[str, Kept]:
    (own,) = owned(made, ranks, rank).values()
    rows = (made.num_blocks, own, made.block_size)
    named = ("conv", "conv_bias", "opens", "opens_bias", "keeps", "keeps_bias", "decay")
    return {
        **dict.fromkeys(("yx.weight", "yx.bias"), _under(rows, rows)), **dict.fromkeys(named, _under(rows)),
        "output.weight": _beside(own, made.block_size), "output.bias": _once(rank),
    }  # fmt: skip


def _of_beside(made: Beside, ranks: int, rank: int) -> dict[str, Kept]:
    parts = {"attention": _of_gqa(made.attention, ranks, rank), "recurrent": _of_space(made.recurrent, ranks, rank)}
    return {f"{part}.{leaf}": each for part, found in parts.items() for leaf, each in found.items()}


def _of_fronted(made: Fronted, ranks: int, rank: int) -> dict[str, Kept]:
    """A change has its first product whole, and of the second what its rank has of the product that is changed."""
    block, size = made.block, made.block.attention.head_dim
    q, kv = owned(block.attention, ranks, rank).values()
    keys = _under((block.attention.num_kv_heads, kv, size))
    parts = {
        "block.attention": _of_gqa(block.attention, ranks, rank), "block.ffn": _of_mlp(block.ffn, ranks, rank),
        "block.qkv_change": {"q.up.weight": _under((block.attention.num_heads, q, size)),
                             **dict.fromkeys(("k.up.weight", "v.up.weight"), keys)},
        "block.gate_up_change": {"up.weight": _of_mlp(block.ffn, ranks, rank)["gate_up.weight"]},
        "recurrent": _of_space(made.recurrent, ranks, rank),
    }  # fmt: skip
    return {f"{part}.{leaf}": each for part, found in parts.items() for leaf, each in found.items()}


def _of_mlp(made: GatedMLP | MLP, ranks: int, rank: int) -> dict[str, Kept]:
    (own,), size = owned(made, ranks, rank).values(), made.intermediate_size
    first = "gate_up" if isinstance(made, GatedMLP) else "up"
    rows = _under(*[(size, own, 1)] * (2 if isinstance(made, GatedMLP) else 1))
    return {f"{first}.weight": rows, f"{first}.bias": rows, "down.weight": _beside(own), "down.bias": _once(rank)}


def _of_moe(made: MoE, ranks: int, rank: int, width: int) -> dict[str, Kept]:
    """`width`: of what experts are given."""
    (own,), size, count = owned(made, ranks, rank).values(), made.intermediate_size, made.router.num_experts
    products = 1 if isinstance(made.activation, spec.Ungated) else 2
    if whole_experts(made, ranks):
        experts = cut(count, ranks, rank)
        rows, columns = _under((count, experts, products * size)), _under((count, experts, width))
        down_bias = columns
    else:
        rows, columns, down_bias = _under(*[(size, own, 1)] * (products * count)), _beside(own), _once(rank)
    found = {"experts.gate_up": rows, "experts.gate_up_bias": rows}
    found |= {"experts.down": columns, "experts.down_bias": down_bias}
    shared = _of_mlp(made.shared, ranks, rank) if made.shared else {}
    return found | {f"shared.{leaf}": each for leaf, each in shared.items()}


# The parts of what a layer is made of, by the names of its parameters.
PARTS: dict[type, Callable[..., dict[str, Kept]]] = {
    GQA: _of_gqa,
    MLA: _of_mla,
    Compressed: lambda *_: {},  # which is not split
    AddedConv: lambda *_: {},  # nor what it lies beside
    GatedDeltaNet: _of_delta,
    ChannelDelta: _of_channels,
    GatedConv: _of_conv,
    StateSpace: _of_space,
    SelectiveScan: _of_selective,
    GatedRecurrence: _of_recurrence,
    Beside: _of_beside,
    Fronted: _of_fronted,
    GatedMLP: _of_mlp,
    MLP: _of_mlp,
    MoE: _of_moe,
}
