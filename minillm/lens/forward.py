"""What one forward pass shows: the residual stream behind every layer, what attention and feed-forward add to it, what
each head looks at, and what the model would say if it ended there (the logit lens; nostalgebraist, 2020).

Everything with a unit of information is in nats. Shapes: L layers, H heads, T positions, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm import spec
from minillm.engine.asked import LOGITS_AT_ONCE
from minillm.engine.batching.engine import Engine
from minillm.engine.batching.room import SIZE
from minillm.engine.completion import Completion
from minillm.engine.inserted import Inserted
from minillm.engine.sampling import Sampling
from minillm.model.decoder import Decoder
from minillm.report import observe

MAX_ATTENTION = 2**25  # weights of all heads: 128 MiB in fp32


@dataclass(frozen=True)
class Pass:
    """One forward pass over T tokens, as the model computed it."""

    tokens: Tensor  # int64 [T]
    residual: Tensor  # [L + 1, T, E]: behind the embedding, and behind each layer, which may add and scale besides;
    # of several streams what the final norm would be given
    attended: Tensor  # [L, T, E]: what attention adds, its own post-norm and factor included
    fed: Tensor  # [L, T, E]: what the feed-forward adds
    attention: list[Tensor]  # for each layer fp32 [H, T, T]; H is 0 where a layer is recurrent


def check(decoder: spec.Decoder, ids: Sequence[int]) -> None:
    """Raises ValueError for a prompt that cannot go through, or whose attention maps would be too large."""
    if not ids:
        raise ValueError("the prompt is empty; give a token id, or a text that the tokenizer makes one of")
    if not 0 <= min(ids) <= max(ids) < decoder.vocab_size:
        worst = min(ids) if min(ids) < 0 else max(ids)
        raise ValueError(f"token id {worst} is outside the vocabulary of {decoder.vocab_size}")
    if any(isinstance(each, spec.Compressed) for each in decoder.attentions):
        raise ValueError("this model's heads look at blocks of positions as one, and there is no map of that")
    heads = sum(each.num_heads for each in decoder.attentions)
    most = min(decoder.context, int((MAX_ATTENTION / max(heads, 1)) ** 0.5))
    if len(ids) > most:
        raise ValueError(
            f"the prompt has {len(ids)} tokens and at most {most} can be looked at: {heads} heads hold a weight for "
            f"each pair, and the context is {decoder.context}; give a shorter one"
        )


def _added(seen: Mapping[str, Any], layer: str, part: str) -> Tensor:
    """What a part of a layer adds, nothing where the layer has no such part."""
    return seen[f"{layer}{part}"].result if f"{layer}{part}" in seen else torch.zeros_like(seen[layer].result)


@torch.inference_mode()
def look(model: Decoder, ids: Sequence[int], inserted: Inserted | None = None) -> Pass:
    """Run the model over checked ids, with what stands among them, and leave it as it was."""
    tokens = torch.tensor(list(ids), device=model.embedding.weight.device)
    count = len(model.layers)
    parts = ("", ".post_attention_norm", ".post_ffn_norm")  # a norm that is left out is there and gives what it got
    names = [f"layers.{i}{part}" for i in range(count) for part in parts]
    with observe.modules(model, names) as seen, observe.ops(model, "attention") as calls:
        model.hidden(tokens[None]) if inserted is None else _at_once(model, ids, inserted)
    layers = [seen[f"layers.{i}"] for i in range(count)]
    attends = [any(isinstance(each, spec.Attention) for each in layer.mixers) for layer in model.spec.layers]
    assert len(calls) == sum(attends), f"{len(calls)} attentions in {sum(attends)} layers"
    maps = (observe.attention_weights(*call.given, **call.options)[0] for call in calls)
    scales = [layer.branch_scale for layer in model.spec.layers]
    attended, fed = (
        torch.cat([_added(seen, f"layers.{i}", part) * scale for i, scale in enumerate(scales)]) for part in parts[1:]
    )
    first = model.embed(tokens[None]) if inserted is None else layers[0].given[0]
    return Pass(
        tokens,
        torch.cat([first, *(model.merged(each.result) for each in layers)]),
        attended,
        fed,
        [next(maps) if each else torch.zeros(0, len(tokens), len(tokens)) for each in attends],
    )


def _at_once(model: Decoder, ids: Sequence[int], inserted: Inserted) -> None:
    """All of a prompt with pictures in one pass of the engine, which puts them in."""
    row = Completion(list(ids), Sampling(temperature=0), 1, inserted=inserted)
    engine = Engine(model, len(ids) + 2 * SIZE, 1, budget=len(ids))
    engine.add(row)
    engine.step()


@torch.inference_mode()
def predictions(model: Decoder, seen: Pass, top_k: int) -> dict[str, Any]:
    """The next token's distribution at each position, and the logit lens: the final norm and the head applied behind
    every layer. The divergence is KL(final ‖ layer); ranks count from 1."""
    size = max(LOGITS_AT_ONCE // model.spec.vocab_size, 1)
    rows = torch.arange(len(seen.tokens)).split(size)
    found = [_predictions(model, seen, each, top_k) for each in rows]
    distribution, following, lens = (
        {key: torch.cat([part[kind][key] for part in found], dim=axis) for key in found[0][kind]}
        for kind, axis in (("distribution", 0), ("following", 0), ("lens", 1))
    )
    return {"distribution": distribution, "following": following, "lens": lens}


def _predictions(model: Decoder, seen: Pass, rows: Tensor, top_k: int) -> dict[str, dict[str, Tensor]]:
    """`predictions` of some positions."""
    final = log_chances(model, seen.residual[-1:, rows])[0]  # [rows, V]
    best = likeliest(final, top_k)
    actual = seen.tokens[(rows + 1)[rows + 1 < len(seen.tokens)]]  # what came; nothing behind the last one
    known = final[: len(actual)]
    own = known.gather(1, actual[:, None])
    lens = [_level(log_chances(model, level[None, rows])[0], final) for level in seen.residual]
    return {
        "distribution": {
            "ids": best,
            "probabilities": final.gather(-1, best).exp(),
            "entropy": entropy(final.exp()),
        },
        "following": {"probability": own.exp()[:, 0], "nats": -own[:, 0], "rank": 1 + (known > own).sum(-1)},
        "lens": {key: torch.stack([level[key] for level in lens]) for key in lens[0]},
    }


def log_chances(model: Decoder, hidden: Tensor) -> Tensor:
    """log softmax of the model's logits, fp32 (fp64 of an fp64 model). Raises ValueError where they are not finite."""
    logits = model.logits(hidden)
    found = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    if not bool(found.isfinite().all()):
        raise ValueError(f"the logits leave the range of {model.dtype}; try --dtype float32")
    return found


def likeliest(chances: Tensor, count: int) -> Tensor:
    """The ids of the `count` highest in the last dimension: highest first, and among equals the lowest id first, which
    is the one that argmax picks."""
    order = chances.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].clone()  # a view would keep the order of all of them


def _level(here: Tensor, final: Tensor) -> dict[str, Tensor]:
    """What one layer's log-probabilities `[T, V]` say, beside the last one's."""
    best, answer = here.max(-1), final.argmax(-1, keepdim=True)
    return {
        "ids": best.indices,
        "probability": best.values.exp(),
        "entropy": entropy(here.exp()),
        "kl": (final.exp() * (final - here)).sum(-1).clamp(min=0),  # rounding may leave it a little below
        "rank": 1 + (here > here.gather(1, answer)).sum(-1),
    }


def entropy(chances: Tensor) -> Tensor:
    """-Σ p log p over the last dimension, in nats."""
    return torch.special.entr(chances).sum(-1)


def heads(seen: Pass, decoder: spec.Decoder) -> list[dict[str, Tensor]]:
    """For each layer, for each head `[H]`: the mean over queries of the entropy of its weights, of how many positions
    back they lie, of the share on the first token (that token's own query left out), and of what a sink takes.

    A sink is one outcome more for the entropy; the distance is that of the weights which are left.
    """
    found = []
    for weights, layer in zip(seen.attention, decoder.layers, strict=True):
        count, total = weights.shape[-1], weights.sum(-1)
        back = torch.arange(count, device=weights.device)
        distance = (back[:, None] - back[None]).clamp(min=0)
        has_sink = any(isinstance(each, (spec.GQA, spec.MLA)) and each.sinks for each in layer.mixers)
        sink = (1 - total).clamp(min=0) if has_sink else torch.zeros_like(total)
        found.append(
            {
                "entropy": (entropy(weights) + torch.special.entr(sink)).mean(-1),
                "distance": ((weights * distance).sum(-1) / total).mean(-1),
                "first": weights[:, min(1, count - 1) :, 0].mean(-1),
                "sink": sink.mean(-1),
            }
        )
    return found


def norms(seen: Pass) -> dict[str, Tensor]:
    """Euclidean norms per layer and position, in fp32: of the residual stream `[L + 1, T]`, and of what attention and
    feed-forward add `[L, T]`."""
    parts = {"residual": seen.residual, "attention": seen.attended, "ffn": seen.fed}
    return {name: torch.linalg.vector_norm(part.float(), dim=-1) for name, part in parts.items()}
