"""How likely a model finds given continuations of given contexts: what multiple-choice tests are made of.

Shapes: B sequences, T tokens of one, E hidden size, N predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.engine.inference import PREFILL_CHUNK
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder

PASS = 24  # tokens of a sequence: what reading all weights once costs, by measurement on a CPU (20 to 25)
LOGITS_AT_ONCE = 2**25  # values: bounds the fp32 logits

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

    What pairs have in common is read once where all but their last tokens are the same, as with choices of one token.
    At most `max_rows` sequences go through the model together, fewer where padding them would cost more than it saves.
    Raises ValueError for a pair that has no context, no continuation, or more tokens than the model's context takes.
    """
    readers: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        _check(context, continuation, model)
        readers.setdefault((*context, *continuation[:-1]), []).append(index)
    sequences = list(readers)
    found: dict[int, tuple[float, bool]] = {}
    for group in grouped([len(sequence) for sequence in sequences]):
        size = max_rows or len(group)
        for start in range(0, len(group), size):
            members = [sequences[each] for each in group[start : start + size]]
            hidden_BTE = _hidden(model, members)
            wanted = [(row, index) for row, sequence in enumerate(members) for index in readers[sequence]]
            hidden_NE = torch.cat([hidden_BTE[row, -len(pairs[index][1]) :] for row, index in wanted])
            continuations = [pairs[index][1] for _, index in wanted]
            scores = _scores(model, hidden_NE, continuations)
            found |= {index: each for (_, index), each in zip(wanted, scores, strict=True)}
            progress(len(found), len(pairs))
    return [found[index] for index in range(len(pairs))]


def _check(context: Sequence[int], continuation: Sequence[int], model: Decoder) -> None:
    if not context or not continuation:
        raise ValueError("a context or a continuation is empty; each needs a token at least")
    if (count := len(context) + len(continuation) - 1) > model.spec.context:
        raise ValueError(
            f"a context with its continuation has {count} tokens to read, the model takes {model.spec.context}"
        )


def _hidden(model: Decoder, sequences: Sequence[Sequence[int]]) -> Tensor:
    """The hidden states `[B, T, E]` of sequences aligned at their end: with the padding in front, and a cache that
    knows of it, a shorter one is rotated as it would be alone, whatever the scaling."""
    width, device = max(map(len, sequences)), model.embedding.weight.device
    padding = [width - len(sequence) for sequence in sequences]
    rows = [[0] * short + list(sequence) for short, sequence in zip(padding, sequences, strict=True)]
    cache = Cache(model.spec, len(rows), width, dtype=model.dtype, device=device, padding=padding)
    cache.prompt_length = width
    pieces = torch.tensor(rows, device=device).split(PREFILL_CHUNK, dim=1)
    return torch.cat([model.hidden(piece, cache) for piece in pieces], dim=1)


def _scores(model: Decoder, hidden_NE: Tensor, continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
    """Hidden states before each token of the continuations, one after the other -> their scores."""
    targets_N = torch.tensor([token for each in continuations for token in each], device=hidden_NE.device)
    size = max(LOGITS_AT_ONCE // model.spec.vocab_size, 1)
    logprobs, likeliest = [], []
    for some_NE, expected_N in zip(hidden_NE.split(size), targets_N.split(size), strict=True):
        logits_NV = model.logits(some_NE[None])[0].float()
        logprobs.append(logits_NV.log_softmax(-1).gather(1, expected_N[:, None])[:, 0].double())
        likeliest.append(logits_NV.argmax(-1) == expected_N)
    lengths = [len(each) for each in continuations]
    both = zip(torch.cat(logprobs).split(lengths), torch.cat(likeliest).split(lengths), strict=True)
    return [(logprob_N.sum().item(), bool(likely_N.all())) for logprob_N, likely_N in both]


def grouped(lengths: Sequence[int]) -> list[list[int]]:
    """Which prompts are read in one pass, longest first: a shorter one joins as long as the padding that it needs costs
    less than the pass that it saves, and all fit into one piece."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        latest = groups[-1] if groups else []
        width = lengths[latest[0]] if latest else 0
        if latest and width - lengths[index] < PASS and (len(latest) + 1) * width <= PREFILL_CHUNK:
            latest.append(index)
        else:
            groups.append([index])
    return groups
