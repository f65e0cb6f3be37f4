"""What each of several ranks holds: tensor parallelism (Shoeybi et al., arXiv:1909.08053) as a smaller model.

    x -> norm -> [q k v of heads 0-3] -> attention -> W_out, columns of heads 0-3 \\
                                                                                  + -> x + sum -> …   rank 0
    x -> norm -> [q k v of heads 4-7] -> attention -> W_out, columns of heads 4-7 /                   rank 1

A rank of a Llama-70B over 8 is a Llama of 8 heads over 1 and a feed-forward of 3584 values: `local` gives its spec, and
`kept.py` says which rows and columns of each parameter of the whole model are its own. Between ranks there are only
sums, one behind attention and one behind the feed-forward, so shares need not be equal: 3, 5 or 7 ranks do. Embedding
and head are split by the vocabulary. What is not split each rank has whole: norms, routers, latents.

Where there are fewer kv heads than ranks, each of them is on as many ranks, which share its query heads. Each rank has
a slice of every expert, so that all have as much to do for any token; only where slices would be thin has it some whole
experts instead, and leaves out what a token wants of others (expert parallelism, Lepikhin et al., arXiv:2006.16668).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from minillm import spec
from minillm.spec import (
    GQA,
    MLA,
    Beside,
    ChannelDelta,
    Compressed,
    Decoder,
    Fronted,
    GatedConv,
    GatedDeltaNet,
    GatedRecurrence,
    Layer,
    MoE,
    SelectiveScan,
    StateSpace,
)

Span = tuple[int, int]  # the first and the one behind the last
MOST = 1024  # ranks
THIN = 128  # values of an expert: experts of which a rank would have fewer stay whole
GRAIN, ROUGH = 256, 8  # values that a share is a multiple of, where each rank has at least so many times as many
# Heads that come in groups: the fields that count both, and what the groups are called.
GROUPED: dict[type, tuple[str, str, str]] = {
    GQA: ("num_heads", "num_kv_heads", "kv"),
    GatedDeltaNet: ("num_v_heads", "num_k_heads", "k"),
    StateSpace: ("num_heads", "num_groups", "pairs of B and C for"),
}


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
    """The spec of what a rank computes. Raises ValueError, with the possible numbers, if there cannot be so many."""
    if ranks == 1:
        return decoder
    check(decoder, ranks)
    layers = tuple(
        replace(layer, attention=_part(layer.attention, ranks, rank), ffn=_part(layer.ffn, ranks, rank))
        for layer in decoder.layers
    )
    if decoder.embedding.rows is not None:  # a stage that has none
        return replace(decoder, layers=layers)
    embedding = replace(decoder.embedding, rows=cut(decoder.vocab_size, ranks, rank))
    return replace(decoder, layers=layers, embedding=embedding)


def owned(made: Any, ranks: int, rank: int) -> dict[str, Span]:
    """Of what a part of a layer counts, by the field that says how many: those of a rank."""
    if type(made) in GROUPED:
        fields = GROUPED[type(made)][:2]
        count, groups = (getattr(made, field) for field in fields)
        return dict(zip(fields, heads(count, groups, ranks, rank), strict=True))
    if isinstance(made, GatedRecurrence):
        return {"num_blocks": cut(made.num_blocks, ranks, rank)}
    if isinstance(made, (MLA, ChannelDelta)):
        return {"num_heads": cut(made.num_heads, ranks, rank)}
    field = "channels" if isinstance(made, GatedConv | SelectiveScan) else "intermediate_size"
    return {field: grains(getattr(made, field), ranks, rank)}


def _part(made: Any, ranks: int, rank: int) -> Any:
    """What a rank has of a part of a layer."""
    if made is None:
        return None
    if isinstance(made, Beside):
        return replace(made, **{each: _part(getattr(made, each), ranks, rank) for each in ("attention", "recurrent")})
    if isinstance(made, Fronted):
        block = replace(
            made.block, **{each: _part(getattr(made.block, each), ranks, rank) for each in ("attention", "ffn")}
        )
        return replace(made, block=block, recurrent=_part(made.recurrent, ranks, rank))
    own = owned(made, ranks, rank)
    changed: dict[str, Any] = {field: end - first for field, (first, end) in own.items()}
    if isinstance(made, GQA) and made.scores.slopes:
        changed["scores"] = replace(made.scores, slopes=made.scores.slopes[slice(*own["num_heads"])])
    if isinstance(made, MoE):
        if whole_experts(made, ranks):
            changed = {"own": cut(made.router.num_experts, ranks, rank)}
        changed["shared"] = _part(made.shared, ranks, rank)
    return replace(made, **changed)


def whole_experts(made: MoE, ranks: int) -> bool:
    """Whether each rank has some experts whole, not a slice of all."""
    return made.intermediate_size < THIN * ranks and made.router.num_experts >= ranks


def check(decoder: Decoder, ranks: int) -> None:
    """Raise ValueError, with the possible numbers, if a model cannot be split over so many ranks."""
    if not 1 <= ranks <= MOST:
        raise ValueError(f"--ranks is {ranks}, it must be from 1 to {MOST}")
    if (reason := next(_reasons(decoder, ranks), None)) is not None:
        others = ", ".join(map(str, able(decoder, 64)))
        raise ValueError(f"{ranks} ranks cannot share this model: {reason}; possible numbers: {others}")


def able(decoder: Decoder, most: int) -> list[int]:
    """The possible numbers of ranks, up to `most`."""
    return [each for each in range(1, most + 1) if next(_reasons(decoder, each), None) is None]


def _reasons(decoder: Decoder, ranks: int) -> Iterator[str]:
    if ranks == 1:
        return
    if decoder.vocab_size < ranks:
        yield f"the vocabulary has {decoder.vocab_size} tokens"
    for index, layer in enumerate(decoder.layers):
        yield from (f"layer {index} has {reason}" for reason in _of_layer(layer, decoder, ranks))


def _of_layer(layer: Layer, decoder: Decoder, ranks: int) -> Iterator[str]:
    if isinstance(layer.attention, Fronted) and layer.attention.block.ffn.intermediate_size < ranks:
        yield f"a feed-forward of {layer.attention.block.ffn.intermediate_size} values"
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
    if isinstance(made, Compressed):
        yield "one key for all heads, and entries made of it"
    if isinstance(made, (MLA, ChannelDelta)) and made.num_heads < ranks:
        yield f"{made.num_heads} heads"
    if type(made) in GROUPED:
        count, groups = (getattr(made, field) for field in GROUPED[type(made)][:2])
        if groups < ranks and (ranks % groups or count < ranks):
            yield f"{count} heads over {groups} {GROUPED[type(made)][2]} heads"
    if isinstance(made, GQA):
        lender = None if made.kv.layer is None else decoder.layers[made.kv.layer].attention
        if isinstance(lender, GQA) and lender.num_kv_heads != made.num_kv_heads:
            yield "another number of kv heads than the layer that it takes keys from"
        if made.qk_norm and made.qk_norm.width == "all" and isinstance(made.qk_norm.norm, spec.LayerNorm):
            yield "a LayerNorm over all of its heads"
    if isinstance(made, GatedRecurrence) and made.num_blocks < ranks:
        yield f"{made.num_blocks} blocks of recurrences"
    if isinstance(made, GatedConv | SelectiveScan) and made.channels < ranks:
        yield f"a convolution of {made.channels} channels"
    if isinstance(made, StateSpace) and made.norm and made.num_groups < ranks:
        yield f"a norm over each of {made.num_groups} groups of heads"
