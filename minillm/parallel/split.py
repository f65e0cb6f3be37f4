"""What each of several ranks holds: tensor parallelism (Shoeybi et al., arXiv:1909.08053) as a smaller model.

    x -> norm -> [q k v of heads 0-3] -> attention -> W_out, columns of heads 0-3 \\
                                                                                  + -> x + sum -> …   rank 0
    x -> norm -> [q k v of heads 4-7] -> attention -> W_out, columns of heads 4-7 /                   rank 1

A rank of a Llama-70B over 8 is a Llama of 8 heads over 1 and a feed-forward of 3584 values: `local` gives its spec, and
`kept` which rows and columns of each parameter of the whole model are its own. Between ranks there are only sums, one
behind attention and one behind the feed-forward, so shares need not be equal: 3, 5 or 7 ranks do. Embedding and
head are split by the vocabulary. What `kept` does not name each rank has whole: norms, routers, latents.

Where there are fewer kv heads than ranks, each of them is on as many ranks, which share its query heads. Each rank has
a slice of every expert, so that all have as much to do for any token; only where slices would be thin has it some whole
experts instead, and leaves out what a token wants of others (expert parallelism, Lepikhin et al., arXiv:2006.16668).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from minillm import spec
from minillm.spec import GQA, MLA, MLP, Beside, Decoder, GatedConv, GatedDeltaNet, GatedMLP, Layer, MoE, StateSpace

Span = tuple[int, int]  # the first and the one behind the last
MOST = 1024  # ranks
THIN = 128  # values of an expert: experts of which a rank would have fewer stay whole
GRAIN, ROUGH = 256, 8  # values that a share is a multiple of, where each rank has at least so many times as many


@dataclass(frozen=True)
class Kept:
    """Rows of a parameter, those of all experts one under the other, and columns of each; None is all. A parameter that
    is `absent` is all zeros, as what it adds is added by another rank."""

    rows: tuple[Span, ...] | None = None
    columns: Span | None = None
    absent: bool = False


def cut(size: int, ranks: int, rank: int) -> Span:
    """A rank's share of `size` things that stay whole."""
    return size * rank // ranks, size * (rank + 1) // ranks


def grains(size: int, ranks: int, rank: int) -> Span:
    """A rank's share of `size` values: whole multiples of a power of two, as kernels and groups of quantised values
    want them, as large as leaves shares about equal."""
    grain = GRAIN
    while grain > 1 and (size % grain or (size // grain % ranks and size // grain < ROUGH * ranks)):
        grain //= 2
    first, end = cut(size // grain, ranks, rank)
    return first * grain, end * grain


def heads(count: int, groups: int, ranks: int, rank: int) -> tuple[Span, Span]:
    """A rank's share of `count` heads that come in `groups`, and of the groups, which several ranks may share."""
    each = count // groups
    if groups >= ranks:
        first, end = cut(groups, ranks, rank)
        return (first * each, end * each), (first, end)
    sharers = ranks // groups
    group, place = divmod(rank, sharers)
    first, end = cut(each, sharers, place)
    return (group * each + first, group * each + end), (group, group + 1)


def local(decoder: Decoder, ranks: int, rank: int) -> Decoder:
    """The spec of what a rank computes. Raises ValueError, with numbers that would do, where it cannot be so many."""
    if ranks == 1:
        return decoder
    check(decoder, ranks)
    layers = tuple(
        replace(layer, attention=_mixer(layer.attention, ranks, rank), ffn=layer.ffn and _ffn(layer.ffn, ranks, rank))
        for layer in decoder.layers
    )
    if decoder.embedding.rows is not None:  # a stage that has none
        return replace(decoder, layers=layers)
    embedding = replace(decoder.embedding, rows=cut(decoder.vocab_size, ranks, rank))
    return replace(decoder, layers=layers, embedding=embedding)


def _mixer(made: Any, ranks: int, rank: int) -> Any:
    if isinstance(made, Beside):
        return Beside(_mixer(made.attention, ranks, rank), _mixer(made.recurrent, ranks, rank), made.factors)
    if isinstance(made, StateSpace):
        own, groups = heads(made.num_heads, made.num_groups, ranks, rank)
        return replace(made, num_heads=_size(own), num_groups=_size(groups))
    if isinstance(made, MLA):
        return replace(made, num_heads=_size(cut(made.num_heads, ranks, rank)))
    if isinstance(made, GQA):
        q, kv = heads(made.num_heads, made.num_kv_heads, ranks, rank)
        slopes = made.scores.slopes and made.scores.slopes[slice(*q)]
        scores = replace(made.scores, slopes=slopes)
        return replace(made, num_heads=_size(q), num_kv_heads=_size(kv), scores=scores)
    if isinstance(made, GatedConv):
        return replace(made, channels=_size(grains(made.channels, ranks, rank)))
    if made is None:
        return None
    v, k = heads(made.num_v_heads, made.num_k_heads, ranks, rank)
    return replace(made, num_v_heads=_size(v), num_k_heads=_size(k))


def _ffn(made: Any, ranks: int, rank: int) -> Any:
    inner = _size(grains(made.intermediate_size, ranks, rank))
    if not isinstance(made, MoE):
        return replace(made, intermediate_size=inner)
    shared = made.shared and _ffn(made.shared, ranks, rank)
    if whole_experts(made, ranks):
        return replace(made, own=cut(made.router.num_experts, ranks, rank), shared=shared)
    return replace(made, intermediate_size=inner, shared=shared)


def whole_experts(made: MoE, ranks: int) -> bool:
    """Whether each rank has some experts whole, not a slice of all."""
    return made.intermediate_size < THIN * ranks and made.router.num_experts >= ranks


def _size(span: Span) -> int:
    return span[1] - span[0]


def check(decoder: Decoder, ranks: int) -> None:
    """Raise ValueError, with numbers that would do, where a model cannot lie in so many ranks."""
    if not 1 <= ranks <= MOST:
        raise ValueError(f"--ranks is {ranks}, it must be from 1 to {MOST}")
    if (reason := next(_reasons(decoder, ranks), None)) is not None:
        others = ", ".join(map(str, able(decoder, 64)))
        raise ValueError(f"{ranks} ranks cannot share this model: {reason}; it can lie in {others}")


def able(decoder: Decoder, most: int) -> list[int]:
    """The numbers of ranks, up to `most`, that a model can lie in."""
    return [each for each in range(1, most + 1) if next(_reasons(decoder, each), None) is None]


def _reasons(decoder: Decoder, ranks: int) -> Iterator[str]:
    if ranks == 1:
        return
    if decoder.vocab_size < ranks:
        yield f"the vocabulary has {decoder.vocab_size} tokens"
    for index, layer in enumerate(decoder.layers):
        yield from (f"layer {index} has {reason}" for reason in _of_layer(layer, decoder, ranks))


def _of_layer(layer: Layer, decoder: Decoder, ranks: int) -> Iterator[str]:
    for mixer in layer.mixers:
        yield from _of_mixer(mixer, decoder, ranks)
    if layer.ffn is None:
        return
    sizes = [layer.ffn.intermediate_size]
    if isinstance(layer.ffn, MoE):
        sizes = [] if whole_experts(layer.ffn, ranks) else sizes
        sizes += [layer.ffn.shared.intermediate_size] if layer.ffn.shared else []
    yield from (f"a feed-forward of {size} values" for size in sizes if size < ranks)


def _of_mixer(made: Any, decoder: Decoder, ranks: int) -> Iterator[str]:
    if isinstance(made, MLA) and made.num_heads < ranks:
        yield f"{made.num_heads} heads"
    if isinstance(made, GQA):
        yield from _of_groups(made.num_heads, made.num_kv_heads, ranks, "kv")
        lender = None if made.kv.layer is None else decoder.layers[made.kv.layer].attention
        if isinstance(lender, GQA) and lender.num_kv_heads != made.num_kv_heads:
            yield "another number of kv heads than the layer that it takes keys from"
        if made.qk_norm and made.qk_norm.width == "all" and isinstance(made.qk_norm.norm, spec.LayerNorm):
            yield "a LayerNorm over all of its heads"
    if isinstance(made, GatedDeltaNet):
        yield from _of_groups(made.num_v_heads, made.num_k_heads, ranks, "k")
    if isinstance(made, GatedConv) and made.channels < ranks:
        yield f"a convolution of {made.channels} channels"
    if isinstance(made, StateSpace):
        yield from _of_groups(made.num_heads, made.num_groups, ranks, "pairs of B and C for")
        if made.norm and made.num_groups < ranks:
            yield f"a norm over each of {made.num_groups} groups of heads"


def _of_groups(count: int, groups: int, ranks: int, kind: str) -> Iterator[str]:
    if groups < ranks and (ranks % groups or count < ranks):
        yield f"{count} heads over {groups} {kind} heads"


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
    q, kv = heads(made.num_heads, made.num_kv_heads, ranks, rank)
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
    gate = _under((count, q, 1 if made.gate and made.gate.width == "head" else made.v_dim))
    return found | {"sinks": _under((count, q, 1)), "gate.weight": gate}


def _of_mla(made: MLA, ranks: int, rank: int) -> dict[str, Kept]:
    own, count = cut(made.num_heads, ranks, rank), made.num_heads
    return {
        "q.weight": _under((count, own, made.nope_dim + made.rope.dim)),
        "kv_up": _under((count, own, made.nope_dim + made.v_dim)),
        "out.weight": _beside(own, made.v_dim),
        "out.bias": _once(rank),
    }


def _of_delta(made: GatedDeltaNet, ranks: int, rank: int) -> dict[str, Kept]:
    v, k = heads(made.num_v_heads, made.num_k_heads, ranks, rank)
    keys, values, gate = (made.num_k_heads, k, made.k_dim), (made.num_v_heads, v, made.v_dim), (made.num_v_heads, v, 1)
    return {
        "qkvz.weight": _under(keys, keys, values, values),
        "ba.weight": _under(gate, gate),
        "conv.weight": _under(keys, keys, values),
        "decay": _under(gate),
        "step": _under(gate),
        "output.weight": _beside(v, made.v_dim),
    }


def _of_conv(made: GatedConv, ranks: int, rank: int) -> dict[str, Kept]:
    own, size = grains(made.channels, ranks, rank), made.channels
    rows = (size, own, 1)
    return {"bcu.weight": _under(rows, rows, rows), "conv": _under(rows), "output.weight": _beside(own)}


def _of_space(made: StateSpace, ranks: int, rank: int) -> dict[str, Kept]:
    own, shared = heads(made.num_heads, made.num_groups, ranks, rank)
    inner, number = (made.num_heads, own, made.head_dim), (made.num_heads, own, 1)
    group = (made.num_groups, shared, made.state_size)
    rows, seen = _under(inner, inner, group, group, number), _under(inner, group, group)
    return {
        **dict.fromkeys(("zxbcd.weight", "zxbcd.bias"), rows),
        **dict.fromkeys(("conv.weight", "conv.bias"), seen),
        **dict.fromkeys(("decay", "step", "skip"), _under(number)), "norm": _under(inner),
        "output.weight": _beside(own, made.head_dim), "output.bias": _once(rank),
    }  # fmt: skip


def _of_beside(made: Beside, ranks: int, rank: int) -> dict[str, Kept]:
    parts = {"attention": _of_gqa(made.attention, ranks, rank), "recurrent": _of_space(made.recurrent, ranks, rank)}
    return {f"{part}.{leaf}": each for part, found in parts.items() for leaf, each in found.items()}


def _of_mlp(made: GatedMLP | MLP, ranks: int, rank: int) -> dict[str, Kept]:
    own, size = grains(made.intermediate_size, ranks, rank), made.intermediate_size
    first = "gate_up" if isinstance(made, GatedMLP) else "up"
    rows = _under(*[(size, own, 1)] * (2 if isinstance(made, GatedMLP) else 1))
    return {
        f"{first}.weight": rows,
        f"{first}.bias": rows,
        "down.weight": _beside(own),
        "down.bias": _once(rank),
    }


def _of_moe(made: MoE, ranks: int, rank: int, width: int) -> dict[str, Kept]:
    """`width`: of what experts are given."""
    own, size, count = grains(made.intermediate_size, ranks, rank), made.intermediate_size, made.router.num_experts
    products = 1 if isinstance(made.activation, spec.Ungated) else 2
    if whole_experts(made, ranks):
        experts = cut(count, ranks, rank)
        rows, columns = _under((count, experts, products * size)), _under((count, experts, width))
        down_bias = columns
    else:
        rows, columns, down_bias = _under(*[(size, own, 1)] * (products * count)), _beside(own), _once(rank)
    found = {
        "experts.gate_up": rows,
        "experts.gate_up_bias": rows,
        "experts.down": columns,
        "experts.down_bias": down_bias,
    }
    shared = _of_mlp(made.shared, ranks, rank) if made.shared else {}
    return found | {f"shared.{leaf}": each for leaf, each in shared.items()}


# The parts of what a layer is made of, by the names of its parameters.
PARTS: dict[type, Callable[..., dict[str, Kept]]] = {
    GQA: _of_gqa,
    MLA: _of_mla,
    GatedDeltaNet: _of_delta,
    GatedConv: _of_conv,
    StateSpace: _of_space,
    Beside: _of_beside,
    GatedMLP: _of_mlp,
    MLP: _of_mlp,
    MoE: _of_moe,
}
