"""How likely a model finds given continuations of given contexts: what multiple-choice tests and perplexities are made
of. Each sequence is a request to the engine that wants no new tokens, so what several begin with is read once.

Shapes: T tokens of one sequence, E hidden size, N predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.engine.asked import LOGITS_AT_ONCE, Asked
from minillm.engine.batching.engine import Engine
from minillm.engine.batching.room import BUDGET, MAX_ROWS, room_for
from minillm.engine.completion import Completion
from minillm.engine.sampling import Sampling
from minillm.model.decoder import Decoder

Pair = tuple[Sequence[int], Sequence[int]]


@torch.inference_mode()
def score(
    model: Decoder,
    pairs: Sequence[Pair],
    max_rows: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[float, bool]]:
    """For each (context, continuation) of token ids: the sum over the continuation of log p(token | all before it), in
    nats, and whether each of its tokens is the likeliest.

    Where all but the last tokens of pairs are the same, as with choices of one token, they are one sequence. At most
    `max_rows` sequences are under way at a time. Raises ValueError for a pair that has no context, no continuation, or
    more tokens than the model's context takes.
    """
    readers: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        _check(context, continuation, model)
        readers.setdefault((*context, *continuation[:-1]), []).append(index)
    found: dict[int, tuple[float, bool]] = {}
    rows = [_row(model, sequence, pairs, indices, found) for sequence, indices in readers.items()]
    if rows:
        longest = max(len(row.prompt) for row in rows)
        at_once = min(max_rows or max(min(MAX_ROWS, 2 * BUDGET // longest), 2), len(rows))
        engine = Engine(model, room_for(model, rows, at_once), at_once, BUDGET)
        for row in rows:
            engine.add(row)
        while engine.busy:
            before = len(found)
            engine.step()
            if len(found) > before:
                progress(len(found), len(pairs))
    return [found[index] for index in range(len(pairs))]


def _check(context: Sequence[int], continuation: Sequence[int], model: Decoder) -> None:
    if not context or not continuation:
        raise ValueError("a context or a continuation is empty; each needs a token at least")
    if (count := len(context) + len(continuation) - 1) > model.spec.context:
        raise ValueError(
            f"a context with its continuation has {count} tokens to read, the model takes {model.spec.context}"
        )


def _row(
    model: Decoder,
    sequence: Sequence[int],
    pairs: Sequence[Pair],
    indices: Sequence[int],
    found: dict[int, tuple[float, bool]],
) -> Completion:
    """A request that leaves scores of the pairs with this sequence in `found`."""
    first = len(sequence) - max(len(pairs[index][1]) for index in indices)
    hidden: dict[int, Tensor] = {}

    def read(start: int, x_TE: Tensor) -> None:
        hidden[start] = x_TE
        if start + len(x_TE) == len(sequence):
            x_NE = torch.cat([hidden[at] for at in sorted(hidden)])
            for index in indices:
                found[index] = _score(model, x_NE[-len(pairs[index][1]) :], pairs[index][1])
            hidden.clear()

    return Completion([*sequence], Sampling(), 0, asked=Asked(reader=read, read_from=first))


def _score(model: Decoder, x_NE: Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """Hidden states before each token of a continuation -> its score."""
    targets_N = torch.tensor([*continuation], device=x_NE.device)
    size = max(LOGITS_AT_ONCE // model.spec.vocab_size, 1)
    total, likely = 0.0, True
    for some_NE, expected_N in zip(x_NE.split(size), targets_N.split(size), strict=True):
        logits_NV = model.logits(some_NE[None])[0].float()
        total += logits_NV.log_softmax(-1).gather(1, expected_N[:, None]).double().sum().item()
        likely &= bool((logits_NV.argmax(-1) == expected_N).all())
    return total, likely
