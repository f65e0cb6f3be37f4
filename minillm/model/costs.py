"""What a model costs by its sizes alone: values that a token goes through, bytes that a decode step reads, operations.
What a machine really does is measured by `report/measure.py`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from minillm.model import held
from minillm.model.decoder import Decoder
from minillm.model.moe import Experts
from minillm.model.recurrent.states import StateCache
from minillm.spec import MLA, Attention, BlockIndexer, Compressed, Fronted, Indexer, Recurrent, index_dim
from minillm.spec import Decoder as DecoderSpec


def active_values(model: Decoder, tokens: int = 1) -> dict[str, int]:
    """How many values of each parameter a token goes through, or any of several: all, but of the layers' own embeddings
    only its row, and of a layer's E experts only the chosen ones, k of them, or E (1 - (1 - k / E)^tokens) on average
    where tokens choose evenly."""
    counts = {}
    for name, parameter in model.named_parameters():
        owner, counts[name] = model.get_submodule(name.rpartition(".")[0]), parameter.numel()
        tables = (model.positions, None if model.per_layer is None else model.per_layer.embedding)
        if any(owner is table for table in tables if table is not None):
            counts[name] = min(tokens, len(parameter)) * counts[name] // len(parameter)
        if isinstance(owner, Experts):
            router = owner.spec.router
            counts[name] = round(counts[name] * (1 - (1 - router.top_k / router.num_experts) ** tokens))
    return counts


def cached_values(spec: DecoderSpec) -> int:
    """Values that one token takes in the caches of all layers, as long as their windows see it, its share of entries
    included."""
    return sum(_per_token(each) + _of_entry(each) for each in spec.attentions)


def bytes_per_step(model: Decoder, rows: int = 1) -> int:
    """Bytes of weights that one decode step of one token in each row reads: the active ones, but of an embedding that
    is not also the head only the rows looked up, which is next to nothing."""
    parameters = dict(model.named_parameters())
    total = sum(count * parameters[name].element_size() for name, count in active_values(model, rows).items())
    return total - (0 if model.spec.tied else sum(part.nbytes for part in model.embedding.parameters()))


def cached_values_held(spec: DecoderSpec, positions: int) -> int:
    """Values of one row's cache behind so many positions: all that windows see, chosen or not; what several layers read
    counts once."""
    total = sum(_per_token(each) * min(positions, each.window or positions) for each in spec.attentions)
    return total + sum(map(_of_entry, spec.attentions)) * positions


def cached_values_seen(spec: DecoderSpec, positions: int) -> int:
    """Values of one row's cache that a decode step reads behind so many positions; what several layers read counts for
    each. Of chosen keys those alone, but all that they are chosen by."""
    total = 0
    for each in spec.attentions:
        read, most = _read(spec, each), each.window or _chosen(spec, each) or positions
        total += (_per_token(read) - index_dim(read)) * min(positions, most)
        total += (index_dim(each) + _of_entry(read)) * positions
    return total


def state_bytes(spec: DecoderSpec, width: int) -> int:
    """Bytes that recurrent layers keep of one row, whatever its length, and that a decode step reads and writes; with
    a cache of values of `width` bytes."""
    return sum(StateCache.nbytes(each, 0, width) for each in _recurrent(spec))


def prefill_flops(model: Decoder, tokens: int) -> int:
    """Operations that a prompt takes, its last logits alone: two for each value of a matrix that a token goes through,
    and for each pair of a query and a key that it sees two for each value of the key and of the value."""
    return flops(model.spec, sum(multiplied(model).values()), tokens)


def flops(spec: DecoderSpec, values: int, tokens: int) -> int:
    """The same, given how many values of matrices a token goes through."""
    return 2 * values * tokens + 2 * spec.vocab_size * spec.hidden_size + attention_flops(spec, tokens)


def multiplied(model: Decoder) -> dict[str, int]:
    """How many values of each matrix a token goes through, those of a block that layers share once for each: but of the
    head, which the last token has, and of the embedding, which is one only as the head."""
    parameters, active, uses = dict(model.named_parameters()), active_values(model), _uses(model.spec)
    return {
        name: next((count for block, count in uses.items() if name.startswith(block)), 1)
        * active[name]
        * math.prod(shape)
        // parameters[name].numel()
        for name, shape in held.plain_shapes(model).items()
        if len(shape) > 1 and not name.startswith(("embedding.", "head.", "positions.", "per_layer.embedding."))
    }


def _uses(spec: DecoderSpec) -> Counter[str]:
    """How many layers go through a block, by how the names of its products begin."""
    mixers = [
        (i, layer.attention.block.of) for i, layer in enumerate(spec.layers) if isinstance(layer.attention, Fronted)
    ]
    owners = [i if of is None else of for i, of in mixers]
    return Counter(f"layers.{i}.attention.block.{part}." for i in owners for part in ("attention", "ffn"))


def attention_flops(spec: DecoderSpec, tokens: int, past: int = 0) -> int:
    """Operations of the scores and sums of all layers, for queries behind `past` positions, which they see too; and of
    states: each position reads its own twice and writes it once."""
    total = sum(6 * math.prod(each.state) * tokens for each in _recurrent(spec))
    for attention in spec.attentions:
        pairs = _pairs(tokens, past, attention.window or _chosen(spec, attention))
        total += 2 * attention.num_heads * pairs * _key_and_value(attention)
        made = attention.indexer
        if isinstance(made, (Indexer, BlockIndexer)):  # which looks at all of them
            heads = made.num_heads if isinstance(made, Indexer) else attention.num_kv_heads  # type: ignore[union-attr]
            total += 2 * heads * made.head_dim * _pairs(tokens, past, None)
        if isinstance(attention, Compressed) and attention.entries is not None:
            total += _of_entries(attention, tokens, past)
    return total


def _pairs(tokens: int, past: int, window: int | None) -> int:
    """Of queries behind `past` positions and keys that they see."""
    window = window or past + tokens
    inner = min(max(window - past, 0), tokens)  # how many queries the window does not cut yet
    return inner * past + inner * (inner + 1) // 2 + (tokens - inner) * window


def _chosen(spec: DecoderSpec, attention: Attention) -> int | None:
    """How many keys an indexer leaves to a query, the attention's own or that of the layer it follows."""
    made: Any = attention.indexer
    if isinstance(made, int):
        made = spec.layers[made].attention.indexer  # type: ignore[union-attr]
    return None if made is None else made.most


def _of_entries(attention: Compressed, tokens: int, past: int) -> int:
    """Operations of scores and sums over entries, and of an indexer's scores of all of them."""
    made = attention.entries
    assert made is not None
    every = _pairs(tokens, past, None) // made.span
    if made.indexer is None:
        return 2 * attention.num_heads * every * _key_and_value(attention)
    seen = min(every, tokens * made.indexer.top_k)
    scored = 2 * made.indexer.num_heads * every * made.indexer.head_dim
    return scored + 2 * attention.num_heads * seen * _key_and_value(attention)


def _recurrent(spec: DecoderSpec) -> list[Recurrent]:
    return [each for each in spec.mixers if isinstance(each, Recurrent)]


def _read(spec: DecoderSpec, attention: Attention) -> Attention:
    """The attention whose keys and values this one reads."""
    layer = attention.kv.layer
    found = attention if layer is None else spec.layers[layer].attention
    assert isinstance(found, Attention)
    return found


def _of_entry(attention: Attention) -> int:
    """Values that a position has of an entry, rounded up."""
    made = attention.entries if isinstance(attention, Compressed) else None
    return 0 if made is None else -(-made.kept // made.span)


def _per_token(attention: Attention) -> int:
    if isinstance(attention, Compressed):
        return attention.kept
    if isinstance(attention, MLA):
        return attention.kv_rank + attention.rope.dim + index_dim(attention)
    if attention.kv.layer is not None:
        return 0
    return attention.num_kv_heads * _key_and_value(attention) + index_dim(attention)


def _key_and_value(attention: Attention) -> int:
    if isinstance(attention, Compressed):
        return 2 * attention.head_dim
    if isinstance(attention, MLA):
        return attention.nope_dim + attention.rope.dim + attention.v_dim
    return attention.head_dim + attention.v_dim
