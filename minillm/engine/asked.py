"""What a completion may be asked beside its sampling: probabilities, a least length, and a grammar to keep to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOGITS_AT_ONCE = 2**25  # values: bounds fp32 logits of many positions
MOST_BEST = 20  # alternatives of a token, as OpenAI's API has them
GRAMMAR_FAILED = "the grammar failed"  # how an error begins that is a guide's


class Guide(Protocol):
    """What says which tokens may come next. An exception in it ends its request with an error, and no other."""

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Write which tokens may come next: bit i % 32 of word i // 32 is token i's; int32 `[ceil(V / 32)]`."""

    def advance(self, token: int) -> None:
        """Take the next token, which was allowed. A token that stops the text does not come here."""

    def rewind(self, count: int) -> None:
        """Take back the last so many tokens."""

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of these may come next, one after the other."""


Reader = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Asked:
    """Before `min_new_tokens` no stop id is drawn, and no stop string looked for. With `logprobs` each new token has a
    `Score` that names so many of the likeliest; with `prompt_logprobs` so has each token of the prompt but the first.
    `raw` keeps the text with special tokens in it. `reader` is given what is behind the last layer at the positions of
    the prompt from `read_from` on: a position and `[T, E]` from there, perhaps more than once. `adapter` names one of
    those that the model has to choose from; None is the model without any."""

    min_new_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    guide: Guide | None = None
    raw: bool = False
    reader: Reader | None = None
    read_from: int = 0
    adapter: str | None = None

    def __post_init__(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not 0 <= value <= MOST_BEST):
                raise ValueError(f"{name} is {value!r}, it must be from 0 to {MOST_BEST}")
        if isinstance(self.min_new_tokens, bool) or self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens is {self.min_new_tokens!r}, it must be a whole number of at least 0")

    @property
    def late(self) -> bool:
        """Whether tokens may be read some steps after they were drawn: nothing goes by them before."""
        return self.guide is None and self.logprobs is None


NOTHING = Asked()


@dataclass(frozen=True)
class Score:
    """log p of a token before any setting changed it, in nats; and the likeliest tokens with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def scored(logits_NV: Tensor, tokens: Sequence[int], best: int) -> list[Score]:
    """Scores of one token behind each row of logits."""
    logprobs_NV = logits_NV.float().log_softmax(-1)
    chosen = logprobs_NV.gather(1, torch.tensor(tokens, device=logprobs_NV.device)[:, None])[:, 0].tolist()
    values, ids = logprobs_NV.topk(min(best, logprobs_NV.shape[-1]))
    tops = [tuple(zip(*each, strict=True)) for each in zip(ids.tolist(), values.tolist(), strict=True)]
    return [Score(logprob, top) for logprob, top in zip(chosen, tops, strict=True)]


def mask_of(guide: Guide, size: int, device: torch.device) -> Tensor:
    """Which tokens may come next, bool `[size]`. Raises ValueError where none may."""
    bits = np.zeros(-(-size // 32), np.int32)
    guide.fill(bits)
    allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[:size]
    if not allowed.any():
        raise ValueError("the grammar lets no token come next")
    return torch.from_numpy(allowed).to(device).bool()
